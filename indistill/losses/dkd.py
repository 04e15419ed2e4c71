"""Decoupled knowledge distillation (DKD): the target class and the other classes weighed apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from indistill.losses.loss import Target
from indistill.losses.options import TEMPERATURES

ALPHA = 1.0  # weight of target against the rest
BETA = 8.0  # weight of the distribution among the rest
SCALE = 0.2  # with those weights the gradient is 20 to 40 times that of 1000 * PKT


@dataclass(frozen=True)
class DkdLoss:
    """`SCALE` T^2 (ALPHA TCKD + BETA NCKD), the mean over the batch. TCKD is the divergence of (target, not target),
    NCKD that among the classes that are not the target. The target is the teacher's first largest logit.

    Attributes:
        temperature: T; larger is softer.

    Reference: Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022.
    Differs: the teacher's choice in place of the label; the probability of "not target" is summed in logarithms and not
    taken as 1 - p, so that sure teachers and two classes (NCKD is then zero) give finite values; no warm-up of the
    weight; scaled; float32.
    """

    temperature: float = TEMPERATURES["dkd"]

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns the target classes (N,), and the logarithms (N, 2) and (N, C - 1) of `_split`, of logits (N, C)."""
        classes = teacher.argmax(1)
        return (classes, *_split(teacher.float() / self.temperature, classes))

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of logits (N, C), C at least two."""
        classes, teacher_binary, teacher_others = target
        binary, others = _split(student.float() / self.temperature, classes)
        tckd = F.kl_div(binary, teacher_binary, log_target=True, reduction="batchmean")
        nckd = F.kl_div(others, teacher_others, log_target=True, reduction="batchmean")
        return SCALE * self.temperature**2 * (ALPHA * tckd + BETA * nckd)


def _split(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns logarithms of probabilities: of target and not target (N, 2), and among the others (N, C - 1)."""
    rest = torch.ones_like(logits, dtype=torch.bool).scatter(1, classes[:, None], False)
    others = logits[rest].view(len(logits), -1)
    binary = torch.stack([logits[~rest], others.logsumexp(1)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)
