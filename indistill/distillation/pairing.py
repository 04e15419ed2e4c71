"""Which teacher stage each student stage is to imitate, and by which of its channels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import StageError
from indistill.models.loading import Network
from indistill.preprocess import Preprocessing
from indistill.pruning.channels import check_widths, measure_energies, measure_stages, select_channels
from indistill.pruning.criteria import DATA_CRITERIA, Criterion
from indistill.stages.graph import StagePair, check_node, list_nodes, summarise_nodes
from indistill.stages.trunk import Stage, describe_stages, find_stages

MAX_OCTAVES = 1.0  # strides that differ by a factor of two do not belong together
CRITERION_IMAGES = 512
ENERGY_IMAGES = 64
DEPTH_WEIGHT = 0.1  # between stages of equal stride the nearer depth decides


@dataclass(frozen=True)
class Alignment:
    """A pair of stages as it is trained.

    Attributes:
        teacher: the teacher's stage.
        student: the student's stage.
        energy: the share of the teacher stage's energy that the chosen channels carry; None until it is measured.
    """

    teacher: Stage
    student: Stage
    energy: float | None = None


class AlignmentRow(TypedDict):
    """What a run writes down of a pair."""

    teacher: str
    student: str
    teacher_width: int
    student_width: int
    teacher_side: int | None
    student_side: int | None
    kept: int
    energy: float | None


@dataclass(frozen=True)
class Pairing:
    """Teacher, student and their stages, from the input to the output.

    Attributes:
        teacher: the heavy network.
        student: the light one.
        stages: the pairs that are trained.
        alignments: of the same pairs, what their stages give; empty where no image size is known.
        skipped: why stages were left out, a sentence each.
    """

    teacher: Network
    student: Network
    stages: tuple[StagePair, ...]
    alignments: tuple[Alignment, ...] = ()
    skipped: tuple[str, ...] = ()

    def describe(self) -> list[AlignmentRow]:
        """Returns what a run writes down."""
        return [
            {
                "teacher": row.teacher.node,
                "student": row.student.node,
                "teacher_width": row.teacher.channels,
                "student_width": row.student.channels,
                "teacher_side": row.teacher.side,
                "student_side": row.student.side,
                "kept": len(pair.channels) or row.teacher.channels,
                "energy": None if row.energy is None else round(row.energy, 4),
            }
            for pair, row in zip(self.stages, self.alignments, strict=False)
        ]


def pair_stages(
    teacher: Network,
    student: Network,
    named: tuple[StagePair, ...],
    *,
    warm_up: bool,
    image_size: int | None = None,
    wider: Literal["skip", "refuse", "keep"] = "skip",
) -> Pairing:
    """Returns the pairing: the pairs that the user named, or the stages of both networks, found by themselves.

    The known stages of the paper's networks are paired in their order, all others by stride and depth.

    Args:
        teacher: the heavy network.
        student: the light one.
        named: the pairs of `--pair`; none to find them.
        warm_up: whether stages are trained at all; without, there are no pairs.
        image_size: side of the square input in pixels; needed where stages have to be found.
        wider: what becomes of a found pair whose student stage is the wider one, so that nothing can be pruned.

    Raises:
        ModelError: a network cannot take images of this size.
        StageError: a named node does not exist, or no stages can be paired.
    """
    if not warm_up:
        return Pairing(teacher, student, ())
    if named:
        for pair in named:
            check_node(teacher.module, pair.teacher, "teacher")
            check_node(student.module, pair.student, "student")
        if image_size is None:
            return Pairing(teacher, student, named)
        described = (
            describe_stages(teacher.module, [pair.teacher for pair in named], image_size),
            describe_stages(student.module, [pair.student for pair in named], image_size),
        )
        alignments = tuple(Alignment(*stages) for stages in zip(*described, strict=True))
        return Pairing(teacher, student, named, alignments)
    if image_size is None:
        if not teacher.stages or not student.stages:
            raise ValueError("an image size is needed to find stages")
        pairs = zip(teacher.stages, student.stages, strict=False)
        return Pairing(teacher, student, tuple(StagePair(t, s) for t, s in pairs))
    found = _find_stages(teacher, image_size, "teacher"), _find_stages(student, image_size, "student")
    if teacher.stages and student.stages:
        alignments = tuple(Alignment(t, s) for t, s in zip(*found, strict=False))  # the shorter one decides
    else:
        alignments = tuple(Alignment(t, s) for t, s in match_stages(*found))
    narrow = [row for row in alignments if row.teacher.channels < row.student.channels and wider != "keep"]
    kept = tuple(row for row in alignments if row not in narrow)
    reasons = tuple(_describe_wider(row) for row in narrow)
    if narrow and (wider == "refuse" or not kept):
        raise StageError(
            f"{reasons[0]}, so there is nothing to prune: use a narrower student, pair this student stage with a "
            "wider teacher stage by --pair TEACHER:STUDENT, or --set targets.alignment=regressor"
            + ("" if kept else ", or leave the warm-up out with --no-warm-up")
        )
    if not kept:
        raise StageError(
            f"no stage of the teacher is at a resolution of the student's (strides {_list_strides(found[0])} and "
            f"{_list_strides(found[1])}): name stages with --pair TEACHER:STUDENT, or leave the warm-up out with "
            "--no-warm-up"
        )
    return Pairing(
        teacher, student, tuple(StagePair(row.teacher.node, row.student.node) for row in kept), kept, reasons
    )


def match_stages(teacher: Sequence[Stage], student: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Returns the pairs of stages that belong together, both in their order and each at most once.

    Among all such pairings it is the one with the most pairs, and of those the one with the smallest distance in all.
    The distance of two stages is that of their strides, in octaves, and a little of their depths; stages an octave
    apart are no pair. Where one network keeps a single stride, strides say nothing, and depths alone count.
    """
    strides = [{stage.stride for stage in stages} for stages in (teacher, student)]
    plain = min(len(values) for values in strides) < 2
    best: dict[tuple[int, int], tuple[int, float, list[tuple[Stage, Stage]]]] = {}
    for i in range(len(teacher) + 1):
        for j in range(len(student) + 1):
            options: list[tuple[int, float, list[tuple[Stage, Stage]]]] = [(0, 0.0, [])]
            if i:
                options.append(best[i - 1, j])
            if j:
                options.append(best[i, j - 1])
            if i and j:
                distance = _measure_distance(teacher[i - 1], student[j - 1], plain=plain)
                if distance is not None:
                    count, total, pairs = best[i - 1, j - 1]
                    options.append((count + 1, total - distance, [*pairs, (teacher[i - 1], student[j - 1])]))
            best[i, j] = max(options, key=lambda option: option[:2])
    return best[len(teacher), len(student)][2]


def draw_images(pixels: Pixels | StreamedPixels, preprocessing: Preprocessing, criterion: Criterion) -> Tensor:
    """Returns the images that channels are chosen and measured on, normalised (N, 3, S, S) float32, spread evenly over
    a training set: at most 512 for a criterion that looks at images, else at most 64 for the energy.
    """
    count = min(len(pixels), CRITERION_IMAGES if criterion in DATA_CRITERIA else ENERGY_IMAGES)
    positions = np.arange(count) * len(pixels) // count
    images = [pixels.images[p] if isinstance(pixels, Pixels) else pixels.read(int(p)) for p in positions]
    return torch.from_numpy(preprocessing.normalise(np.stack(images)))


def choose_channels(pairing: Pairing, images: Tensor, criterion: Criterion, *, seed: int) -> Pairing:
    """Returns the pairing with the teacher's channels of each pair chosen, and the energy that they carry.

    Args:
        pairing: with its alignments.
        images: some normalised training images (N, 3, S, S), on the device of the teacher.
        criterion: see `measure_stages`.
        seed: of the criterion `random`.

    Raises:
        StageError: the criterion cannot be used for a stage, or a pair that the user named cannot be trained.
    """
    teacher, nodes = pairing.teacher, [pair.teacher for pair in pairing.stages]
    for pair, row in zip(pairing.stages, pairing.alignments, strict=True):
        check_widths(f"{pair.teacher}:{pair.student}", _make_shape(row.teacher), _make_shape(row.student))
    if not nodes:
        return pairing
    measured = measure_stages(criterion, teacher.module, nodes, teacher.embedding, images, seed)
    widths = [row.student.channels for row in pairing.alignments]
    chosen = [select_channels(importance, width) for importance, width in zip(measured, widths, strict=True)]
    energies = measure_energies(teacher.module, nodes, chosen, images)
    return replace(
        pairing,
        stages=tuple(replace(p, channels=tuple(c.tolist())) for p, c in zip(pairing.stages, chosen, strict=True)),
        alignments=tuple(replace(r, energy=energy) for r, energy in zip(pairing.alignments, energies, strict=True)),
    )


def _find_stages(network: Network, image_size: int, role: str) -> tuple[Stage, ...]:
    if network.stages:
        return describe_stages(network.module, network.stages, image_size)
    stages = find_stages(network.module, image_size)
    if not stages:
        nodes = ", ".join(summarise_nodes(list_nodes(network.module)))
        raise StageError(
            f"no stages of the {role} '{network.spec}' were found: name them with --pair TEACHER:STUDENT, or leave the "
            f"warm-up out with --no-warm-up. The {role} has: {nodes}"
        )
    return stages


def _measure_distance(teacher: Stage, student: Stage, *, plain: bool) -> float | None:
    if plain:
        return abs(teacher.depth - student.depth)
    octaves = abs(math.log2(teacher.stride / student.stride))
    return octaves + DEPTH_WEIGHT * abs(teacher.depth - student.depth) if octaves < MAX_OCTAVES else None


def _make_shape(stage: Stage) -> torch.Size:
    return torch.Size([1, stage.channels, *([stage.side] * 2 if stage.side is not None else [])])


def _describe_wider(row: Alignment) -> str:
    return (
        f"stage {row.teacher.node}:{row.student.node}: the teacher has {row.teacher.channels} channels, fewer than the "
        f"student's {row.student.channels}"
    )


def _list_strides(stages: Sequence[Stage]) -> str:
    return ", ".join(f"{stage.stride:g}" for stage in stages)
