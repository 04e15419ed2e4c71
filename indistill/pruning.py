"""Width alignment: the channels of a teacher stage that a narrower student stage is to imitate.

A pruned teacher layer that still reads the whole stage before it computes exactly the chosen channels of the whole
layer, so pruning is an index select on a tapped feature (InDistill, arXiv 2205.10003, section 3.1).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.errors import StageError


def measure_importance(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """Returns the l1 norm of each output channel's filter, (C,) float32.

    Reference: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.1.
    """
    return layer.weight.detach().float().abs().flatten(1).sum(1)


def select_channels(importance: Tensor, width: int) -> Tensor:
    """Returns the indices (width,) int64 of the most important channels, in their original order.

    Of equally important channels the first ones are kept.

    Raises:
        ValueError: there are fewer channels than `width`.
    """
    if width > importance.numel():
        raise ValueError(f"{width} channels asked for, there are {importance.numel()}")
    order = torch.argsort(importance, descending=True, stable=True)
    return order[:width].sort().values


def check_ranks(stage: str, teacher_shape: torch.Size, student_shape: torch.Size) -> None:
    """Raises StageError unless a pair's features are both maps (B, C, H, W) or both vectors (B, C)."""
    if len(teacher_shape) != len(student_shape) or len(teacher_shape) not in (2, 4):
        raise StageError(
            f"stage {stage}: the teacher gives {tuple(teacher_shape)[1:]} and the student {tuple(student_shape)[1:]}; "
            "both must be maps (C, H, W) or both vectors (C): name other nodes with --pair TEACHER:STUDENT"
        )


def check_widths(stage: str, teacher_shape: torch.Size, student_shape: torch.Size) -> None:
    """Checks that a student stage can imitate a teacher stage.

    Args:
        stage: the pair's name, for the message.
        teacher_shape: (B, C_t, H, W) or (B, C_t).
        student_shape: (B, C_s, h, w) or (B, C_s).

    Raises:
        StageError: the ranks differ, a rank is neither 2 nor 4, or the teacher is narrower than the student.
    """
    check_ranks(stage, teacher_shape, student_shape)
    if teacher_shape[1] < student_shape[1]:
        raise StageError(
            f"stage {stage}: the teacher has {teacher_shape[1]} channels, fewer than the student's "
            f"{student_shape[1]}, so there is nothing to prune: use a narrower student, pair this student stage "
            "with a wider teacher stage by --pair TEACHER:STUDENT, or --set targets.alignment=regressor"
        )


def align_sizes(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both maps with the larger one pooled to the smaller (adaptive average); vectors as they are."""
    if teacher.dim() != 4 or teacher.shape[2:] == student.shape[2:]:
        return teacher, student
    size = (min(teacher.shape[2], student.shape[2]), min(teacher.shape[3], student.shape[3]))
    return F.adaptive_avg_pool2d(teacher, size), F.adaptive_avg_pool2d(student, size)
