"""Decoupled knowledge distillation (DKD): the target class and the other classes weighed apart."""

import torch
from torch import Tensor
from torch.nn import functional as F

ALPHA = 1.0  # weight of target against the rest
BETA = 8.0  # weight of the distribution among the rest
TEMPERATURE = 4.0


def compute_dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Returns T^2 (ALPHA TCKD + BETA NCKD), the mean over the batch, a scalar. TCKD is the divergence of (target, not
    target), NCKD that among the classes that are not the target. Not scaled further: with these weights the gradient is
    five to fifteen times that of 1000 * PKT.

    Args:
        student: logits (N, C), C at least two.
        teacher: logits (N, C).
        labels: the target classes (N,) int64; without them the teacher's first largest logit is the target.
        temperature: T; larger is softer.

    Raises:
        ValueError: fewer than two classes.

    Reference: Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022.
    Differs: needs no labels; the probability of "not target" is summed in logarithms and not taken as 1 - p, so that
    sure teachers and two classes (NCKD is then zero) give finite values; no warm-up of the weight; float32.
    """
    if student.shape[1] < 2:
        raise ValueError(f"DKD needs logits of at least two classes, not of {student.shape[1]}")
    targets = teacher.argmax(1) if labels is None else labels
    student_binary, student_others = _split(student.float() / temperature, targets)
    teacher_binary, teacher_others = _split(teacher.float() / temperature, targets)
    tckd = F.kl_div(student_binary, teacher_binary, log_target=True, reduction="batchmean")
    nckd = F.kl_div(student_others, teacher_others, log_target=True, reduction="batchmean")
    return temperature**2 * (ALPHA * tckd + BETA * nckd)


def _split(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logarithms of probabilities: of target and not target (N, 2), and among the others (N, C - 1)."""
    rest = torch.ones_like(logits, dtype=torch.bool).scatter(1, targets[:, None], False)
    others = logits[rest].view(len(logits), -1)
    binary = torch.stack([logits[~rest], others.logsumexp(1)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)
