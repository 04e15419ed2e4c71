"""InDistill: stage after stage along the information flow, then the embedding (arXiv 2205.10003)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.curriculum import Phase
from indistill.losses.pkt import compute_pkt_loss, compute_probabilities
from indistill.pruning import align_sizes, check_widths, measure_importance, select_channels
from indistill.stages import (
    Embedder,
    StagePair,
    Tap,
    check_image_size,
    find_producer,
    freeze,
    freeze_cancelled_biases,
    use_batch_statistics,
)
from indistill.training import Step


@dataclass(frozen=True)
class Distillation:
    """What is distilled into what.

    Attributes:
        teacher: in any mode, never changed.
        student: trained in place.
        teacher_embedding: node of the teacher's embedding.
        student_embedding: node of the student's embedding.
        pairs: the stages, from the input to the output.
    """

    teacher: nn.Module
    student: nn.Module
    teacher_embedding: str
    student_embedding: str
    pairs: tuple[StagePair, ...]


class StageStep:
    """Loss of a warm-up stage: mean squared error between the teacher's chosen channels and the student's stage.

    Only the layers up to the stage are run, of both networks.

    Raises:
        StageError: the stages cannot be paired.
    """

    def __init__(self, distillation: Distillation, pair: StagePair, example: Tensor, *, batch_statistics: bool) -> None:
        teacher_tap = Tap(distillation.teacher, pair.teacher)
        self.network = Tap(distillation.student, pair.student).eval()
        name = f"{pair.teacher}:{pair.student}"
        with torch.no_grad():
            teacher_shape = freeze(teacher_tap)(example).shape
            width = self.network(example).shape
        check_widths(name, teacher_shape, width)
        freeze_cancelled_biases(self.network.graph)
        _, producer = find_producer(teacher_tap.graph, teacher_shape[1])
        self.keep = select_channels(measure_importance(producer), width[1])
        if batch_statistics:
            use_batch_statistics(teacher_tap)
        self.teacher = freeze(teacher_tap)

    def prepare(self, images: Tensor, _labels: Tensor, /) -> Tensor:
        """Returns the teacher's chosen channels (B, width, H, W) for images (B, 3, H, W)."""
        with torch.inference_mode():
            features: Tensor = self.teacher(images)
        return features[:, self.keep]  # made outside inference mode, so that autograd may keep it

    def __call__(self, images: Tensor, target: Tensor, /) -> Tensor:
        """Returns the loss of images (B, 3, H, W)."""
        target, imitation = align_sizes(target, self.network(images))
        return F.mse_loss(imitation, target)


class EmbeddingStep:
    """Loss of the embedding stage: PKT between the embeddings of teacher and student, times a scale."""

    def __init__(self, distillation: Distillation, *, scale: float) -> None:
        self.teacher = freeze(Embedder(distillation.teacher, distillation.teacher_embedding))
        self.network = Embedder(distillation.student, distillation.student_embedding)
        self.scale = scale
        freeze_cancelled_biases(self.network.tap.graph)

    def prepare(self, images: Tensor, _labels: Tensor, /) -> Tensor:
        """Returns the probabilities (2, B, B) of the teacher's embeddings for images (B, 3, H, W)."""
        with torch.inference_mode():
            target = compute_probabilities(self.teacher(images))
        return target.clone()  # outside inference mode, so that autograd may keep it

    def __call__(self, images: Tensor, target: Tensor, /) -> Tensor:
        """Returns the loss of images (B, 3, H, W)."""
        return self.scale * compute_pkt_loss(self.network(images), target)


def build_step(
    distillation: Distillation, phase: Phase, example: Tensor, *, scale: float, batch_statistics: bool
) -> Step:
    """Returns the step of a phase; see `StageStep` and `EmbeddingStep`."""
    if phase.objective == "stage":
        return StageStep(distillation, distillation.pairs[phase.stage - 1], example, batch_statistics=batch_statistics)
    return EmbeddingStep(distillation, scale=scale)


def check_distillation(distillation: Distillation, example: Tensor, *, batch_statistics: bool) -> None:
    """Finds out before training whether all of it can be done.

    Raises:
        ModelError: a network cannot take images of this size.
        StageError: a pair cannot be trained.
    """
    side = example.shape[-1]
    check_image_size(distillation.teacher, distillation.teacher_embedding, side, "teacher")
    check_image_size(distillation.student, distillation.student_embedding, side, "student")
    for pair in distillation.pairs:
        StageStep(distillation, pair, example, batch_statistics=batch_statistics)
