"""InDistill: stage after stage along the information flow, then the embedding (arXiv 2205.10003)."""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.curriculum.phases import Phase
from indistill.distillation.teacher_cache import StoredTeacher
from indistill.distillation.terms import Reading, Term, find_logits, measure_width
from indistill.errors import ModelError, StageError
from indistill.losses.build import build_loss
from indistill.losses.hint import build_regressor
from indistill.losses.loss import Target
from indistill.losses.options import LOGIT_LOSSES, LossOptions
from indistill.losses.pkt import PktLoss
from indistill.losses.supervised import build_supervised_loss
from indistill.parallel.batch_norm import widen
from indistill.parallel.processes import gather, weigh_share
from indistill.pruning.channels import align_sizes, check_ranks, check_widths, measure_by, select_channels
from indistill.stages.graph import (
    StagePair,
    Tap,
    check_image_size,
    freeze,
    freeze_cancelled_biases,
    use_batch_statistics,
)
from indistill.stages.taps import Taps
from indistill.training.loop import Step

Alignment = Literal["prune", "regressor"]


@dataclass(frozen=True)
class Distillation:
    """What is distilled into what.

    Attributes:
        teacher: in any mode, never changed.
        student: trained in place.
        teacher_embedding: node of the teacher's embedding.
        student_embedding: node of the student's embedding.
        pairs: the stages, from the input to the output.
        alignment: how the student's stages meet wider ones of the teacher in the warm-up: `prune` keeps the teacher's
            most important channels, `regressor` learns a linear map to all of them, as FitNets does.
        stored: what the embedding's loss reads of the teacher, where it was computed before.
    """

    teacher: nn.Module
    student: nn.Module
    teacher_embedding: str
    student_embedding: str
    pairs: tuple[StagePair, ...]
    alignment: Alignment = "prune"
    stored: StoredTeacher | None = None


class StageStep:
    """Loss of a warm-up stage: mean squared error between the teacher's stage and the student's, its widths aligned.

    Only the layers up to the stage are run, of both networks.

    Reference: InDistill (arXiv 2205.10003), section 3.1, for `prune`; Romero et al., "FitNets", ICLR 2015, for
    `regressor`.

    Raises:
        StageError: the stages cannot be paired.
    """

    def __init__(self, distillation: Distillation, pair: StagePair, example: Tensor, *, batch_statistics: bool) -> None:
        teacher_tap = Tap(distillation.teacher, pair.teacher)
        self.network = Tap(distillation.student, pair.student).eval()
        name = f"{pair.teacher}:{pair.student}"
        self.teacher = freeze(teacher_tap)
        with torch.no_grad():
            teacher_shape = self.teacher(example).shape
            width = self.network(example).shape
        self.keep: Tensor | slice = slice(None)
        self.learnt: nn.Module = nn.Identity()
        if distillation.alignment == "prune":
            check_widths(name, teacher_shape, width)
            self.keep = torch.tensor(pair.channels, dtype=torch.int64, device=example.device)
            if not pair.channels:
                embedding = distillation.teacher_embedding
                importance = measure_by("l1", distillation.teacher, pair.teacher, embedding, example)
                self.keep = select_channels(importance, width[1]).to(example.device)
        else:
            check_ranks(name, teacher_shape, width)
            self.learnt = build_regressor(width[1], teacher_shape[1], maps=len(width) == 4).to(example.device)
        freeze_cancelled_biases(self.network.graph)
        if batch_statistics:
            use_batch_statistics(teacher_tap)
            self.teacher = freeze(teacher_tap)

    def begin_epoch(self, epoch: int) -> None:
        """Does nothing: all epochs are alike."""

    def prepare(self, images: Tensor, _labels: Tensor, /) -> Target:
        """Returns the teacher's chosen channels (B, width, H, W) for images (B, 3, H, W)."""
        with torch.inference_mode():
            features: Tensor = self.teacher(images)
        # Made outside inference mode, so that autograd may keep it.
        return (features.clone() if isinstance(self.keep, slice) else features[:, self.keep],)

    def __call__(self, images: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of images (B, 3, H, W)."""
        features, imitation = align_sizes(target[0], self.network(images))
        return weigh_share(F.mse_loss(widen(self.learnt(imitation)), widen(features)))


class EmbeddingStep:
    """Loss of the embedding stage: the weighted sum of its terms, from one pass of each network.

    Args:
        distillation: teacher and student.
        terms: by `build_terms`; one with a teacher at least.
        first_epoch: epochs of the embedding stage that earlier phases had, as weights may fall from epoch to epoch.
    """

    def __init__(self, distillation: Distillation, terms: tuple[Term, ...], *, first_epoch: int = 0) -> None:
        taught = [term.teacher for term in terms if term.teacher is not None]
        self.teacher = distillation.stored or freeze(Taps(distillation.teacher, taught))
        self.network = Taps(distillation.student, [term.student for term in terms])
        self.learnt = nn.ModuleList(term.loss for term in terms if isinstance(term.loss, nn.Module))
        self.terms, self.first_epoch, self.epoch = terms, first_epoch, first_epoch
        freeze_cancelled_biases(self.network.graph)

    def begin_epoch(self, epoch: int) -> None:
        """Takes the weights of an epoch, counted from 0 in this phase."""
        self.epoch = self.first_epoch + epoch

    def prepare(self, images: Tensor, labels: Tensor, /) -> Target:
        """Returns the targets of all terms in a row, for images (B, 3, H, W) and labels (B,)."""
        with torch.inference_mode():
            features = iter(self.teacher(images))
            with _compute_in_float32(images):
                targets = [
                    term.loss.prepare(gather(labels if term.teacher is None else term.read(next(features))))
                    for term in self.terms
                ]
        # Outside inference mode, so that autograd may keep them.
        return tuple(part.clone() for target in targets for part in target)

    def __call__(self, images: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of images (B, 3, H, W)."""
        features, parts = self.network(images), iter(target)
        with _compute_in_float32(images):
            losses = [
                term.weigh(self.epoch) * term.loss(gather(term.read(feature)), tuple(islice(parts, term.parts)))
                for term, feature in zip(self.terms, features, strict=True)
            ]
        return torch.stack(losses).sum()


def build_terms(
    distillation: Distillation, example: Tensor, options: LossOptions, *, classes: int = 0
) -> tuple[Term, ...]:
    """Returns the terms of the embedding stage's loss: the distillation, and the labels' where there is one.

    They are built once for a run: what they learn goes on from phase to phase.

    Args:
        distillation: teacher and student.
        example: images (B, 3, H, W) of the size that is trained.
        options: which losses, and their weights.
        classes: number of classes of the labels, which cross-entropy needs.

    Raises:
        InputError: a library is missing.
        ModelError: logits are missing, or their widths do not fit.
        StageError: stages are to be compared, and there are none.
    """
    teacher_node, student_node = distillation.teacher_embedding, distillation.student_embedding
    reads: Reading = "embedding"
    if options.name in LOGIT_LOSSES:
        reads, reader = "logits", f"loss '{options.name}'"
        teacher_node = find_logits(distillation.teacher, teacher_node, "teacher", reader)
        student_node = find_logits(distillation.student, student_node, "student", reader)
    teacher_dim = measure_width(distillation.teacher, teacher_node, example, reads)
    student_dim = measure_width(distillation.student, student_node, example, reads)
    if reads == "logits" and not teacher_dim == student_dim >= 2:
        raise ModelError(
            f"loss '{options.name}' needs the same classes of both, two at least, and the teacher has {teacher_dim}, "
            f"the student {student_dim}: set the student's in its spec, as by ?num_classes={teacher_dim} (that "
            "of a width: student in --teacher), or choose a loss of embeddings, as --loss pkt"
        )
    loss = build_loss(options, student_dim, teacher_dim)
    if isinstance(loss, nn.Module):
        loss.to(example.device)
    parts = len(loss.prepare(torch.zeros(2, teacher_dim, device=example.device)))
    terms = [Term(loss, reads, student_node, teacher_node, parts, options.weight)]
    if options.name == "pkth":
        if not distillation.pairs:
            raise StageError("loss 'pkth' compares stages, and none are paired: name some with --pair TEACHER:STUDENT")
        stage = PktLoss(options.scale)
        terms += [Term(stage, "stage", pair.student, pair.teacher, 1, options.weight) for pair in distillation.pairs]
    if options.supervised != "none":
        terms.append(_build_supervised_term(distillation, example, options, classes))
    return tuple(terms)


def build_step(
    distillation: Distillation,
    terms: tuple[Term, ...],
    phase: Phase,
    example: Tensor,
    *,
    batch_statistics: bool,
    first_epoch: int = 0,
) -> Step:
    """Returns the step of a phase; see `StageStep` and `EmbeddingStep`."""
    if phase.objective == "stage":
        return StageStep(distillation, distillation.pairs[phase.stage - 1], example, batch_statistics=batch_statistics)
    return EmbeddingStep(distillation, terms, first_epoch=first_epoch)


def check_distillation(
    distillation: Distillation, example: Tensor, *, batch_statistics: bool, warm_up: bool = True
) -> None:
    """Finds out before training whether all of it can be done.

    Args:
        distillation: teacher and student.
        example: images (B, 3, H, W) of the size that is trained.
        batch_statistics: see `StageStep`.
        warm_up: whether the stages are trained one by one.

    Raises:
        ModelError: a network cannot take images of this size.
        StageError: a pair cannot be trained.
    """
    side = example.shape[-1]
    check_image_size(distillation.teacher, distillation.teacher_embedding, side, "teacher")
    check_image_size(distillation.student, distillation.student_embedding, side, "student")
    for pair in distillation.pairs if warm_up else ():
        StageStep(distillation, pair, example, batch_statistics=batch_statistics)


def _build_supervised_term(distillation: Distillation, example: Tensor, options: LossOptions, classes: int) -> Term:
    node = distillation.student_embedding
    loss = build_supervised_loss(options.supervised)
    if options.supervised != "cross-entropy":
        return Term(loss, "embedding", node, None, 1, options.supervised_weight)
    node = find_logits(distillation.student, node, "student", "loss.supervised 'cross-entropy'")
    width = measure_width(distillation.student, node, example, "logits")
    if width != classes:
        raise ModelError(
            f"loss.supervised 'cross-entropy' needs a logit for each class, and the student gives {width}, "
            f"the data has {classes} classes: set the number in the student's spec, as by ?num_classes={classes} "
            "(that of a width: student in --teacher)"
        )
    return Term(loss, "logits", node, None, 1, options.supervised_weight)


def _compute_in_float32(images: Tensor) -> torch.autocast:
    """Returns a context in which mixed precision is off: the losses subtract numbers that are nearly equal."""
    return torch.autocast(images.device.type, enabled=False)
