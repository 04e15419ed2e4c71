"""Probabilistic knowledge transfer in its first form: the cosine kernel alone."""

import torch
from torch import Tensor

from indistill.losses.pkt import EPSILON, compute_cosine_kernel, normalise_rows

SCALE = 10_000.0  # brings the gradient to that of 1000 * PKT; others weigh the same mean by 30,000


def compute_pkt_eccv_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns `SCALE` times the mean over all pairs of P log(P / Q), a scalar: the divergence KL(P || Q) of the
    neighbourhood probabilities of teacher (P) and student (Q). Teacher and student may differ in width.

    Args:
        student: embeddings (N, D_s).
        teacher: embeddings (N, D_t).

    Reference: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    equations for the cosine kernel, the conditional probabilities and the divergence.
    Differs: a row's probabilities include the row itself, as in `compute_pkt_loss`, so that a batch of two says
    something; a scaled mean over pairs, where the paper sums; an epsilon inside norm and logarithm; float32.
    """
    p = normalise_rows(compute_cosine_kernel(teacher.float()))  # (N, N)
    q = normalise_rows(compute_cosine_kernel(student.float()))  # (N, N)
    return SCALE * (p * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).mean()
