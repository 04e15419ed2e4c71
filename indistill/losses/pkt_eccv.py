"""Probabilistic knowledge transfer in its first form: the cosine kernel alone."""

import torch
from torch import Tensor

from indistill.losses.loss import Target
from indistill.losses.pkt import EPSILON, compute_cosine_kernel, compute_products

SCALE = 10_000.0  # brings the gradient to that of 1000 * PKT; others weigh the same mean by 30,000


class PktEccvLoss:
    """`SCALE` times the mean over all pairs of P log(P / Q): the divergence KL(P || Q) of the neighbourhood
    probabilities of teacher (P) and student (Q). Teacher and student may differ in width.

    Reference: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018: the
    cosine kernel, the conditional probabilities and the divergence.
    Differs: a row's probabilities include the row itself, as in `compute_pkt_loss`, so that a batch of two says
    something; a scaled mean over pairs, where the paper sums; an epsilon inside norm and logarithm; float32.
    """

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns P (N, N) of embeddings (N, D_t)."""
        return (_compute_probabilities(teacher),)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D_s)."""
        (p,) = target
        q = _compute_probabilities(student)  # (N, N)
        return SCALE * (p * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).mean()


def _compute_probabilities(embeddings: Tensor) -> Tensor:
    kernel = compute_cosine_kernel(compute_products(embeddings))
    return kernel / kernel.sum(1, keepdim=True)
