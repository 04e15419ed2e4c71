"""Probabilistic knowledge transfer (PKT): equal neighbourhoods rather than equal coordinates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from indistill.losses.loss import Target

EPSILON = 1e-7
SCALE = 1000.0  # a mean over N x N is tiny: with this a loss is near 1, and its gradient far above Adam's epsilon


@dataclass(frozen=True)
class PktLoss:
    """`scale` times the combined PKT loss, see `compute_pkt_loss`; 1 is as published."""

    scale: float = SCALE

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns the probabilities (2, N, N) of embeddings (N, D_t), or of maps (N, C_t, H, W), flattened."""
        return (compute_probabilities(teacher.flatten(1)),)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D_s), or of maps (N, C_s, h, w), flattened."""
        (probabilities,) = target
        return self.scale * compute_pkt_loss(student.flatten(1), probabilities)


def compute_pkt_loss(student: Tensor, target: Tensor) -> Tensor:
    """Returns the combined PKT loss, a scalar: the Jeffreys divergence of the neighbourhood probabilities of teacher
    and student, summed over a cosine and a Student-t kernel. Teacher and student may differ in width.

    Args:
        student: embeddings (N, D_s).
        target: the teacher's probabilities (2, N, N), by `compute_probabilities`.

    Reference: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (cosine kernel); Passalis, Tzelepi and Tefas, "Heterogeneous Knowledge Distillation using Information Flow
    Modeling", CVPR 2020 (both kernels).
    Differs: an epsilon inside square root, norm and logarithm, for embeddings with signs; always computed in float32.
    """
    q = compute_probabilities(student)  # (2, N, N)
    divergence = (target - q) * (torch.log(target + EPSILON) - torch.log(q + EPSILON))
    return divergence.mean((1, 2)).sum()


def compute_probabilities(embeddings: Tensor) -> Tensor:
    """Returns the conditional probabilities of neighbourhood (2, N, N) of embeddings (N, D): by the cosine kernel, and
    by the Student-t kernel. Each row sums to one.
    """
    products = compute_products(embeddings)
    kernels = torch.stack([compute_cosine_kernel(products), compute_student_t_kernel(products)])
    return kernels / kernels.sum(2, keepdim=True)


def compute_products(embeddings: Tensor) -> Tensor:
    """Returns the inner products of all pairs of rows, (N, N) float32, from which both kernels follow."""
    rows = embeddings.float()
    return rows @ rows.T


def compute_cosine_kernel(products: Tensor) -> Tensor:
    """Returns (1 + cosine) / 2 for all pairs of rows, (N, N) in [0, 1]."""
    lengths = products.diagonal().clamp_min(EPSILON**2).sqrt()  # (N,)
    cosines = products / (lengths[:, None] * lengths[None, :])
    return ((1 + cosines) / 2).clamp_min(0)  # opposite rows can round to a cosine below -1


def compute_student_t_kernel(products: Tensor) -> Tensor:
    """Returns 1 / (1 + Euclidean distance) for all pairs of rows, (N, N) in (0, 1].

    A row's square is taken from the products, so that its distance to itself is exactly zero.
    """
    squares = products.diagonal()  # (N,)
    distances = squares[:, None] + squares[None, :] - 2 * products
    return 1 / (1 + torch.sqrt(distances.clamp_min(0) + EPSILON))
