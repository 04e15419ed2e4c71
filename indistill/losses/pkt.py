"""Probabilistic knowledge transfer (PKT): equal neighbourhoods rather than equal coordinates."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


def compute_pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the combined PKT loss, a scalar: the Jeffreys divergence of the neighbourhood probabilities of teacher
    and student, summed over a cosine and a Student-t kernel. Teacher and student may differ in width.

    Args:
        student: embeddings (N, D_s).
        teacher: embeddings (N, D_t).

    Reference: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (cosine kernel); Passalis, Tzelepi and Tefas, "Heterogeneous Knowledge Distillation using Information Flow
    Modeling", CVPR 2020 (both kernels).
    Differs: an epsilon inside square root, norm and logarithm, for embeddings with signs; always computed in float32.
    """
    student, teacher = student.float(), teacher.float()
    loss = student.new_zeros(())
    for compute_kernel in (compute_cosine_kernel, compute_student_t_kernel):
        p = _normalise_rows(compute_kernel(teacher))  # (N, N)
        q = _normalise_rows(compute_kernel(student))  # (N, N)
        loss = loss + ((p - q) * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).mean()
    return loss


def compute_cosine_kernel(embeddings: Tensor) -> Tensor:
    """Returns (1 + cosine) / 2 for all pairs of rows, (N, N) in [0, 1]."""
    unit = F.normalize(embeddings, eps=EPSILON)
    return ((1 + unit @ unit.T) / 2).clamp_min(0)  # opposite rows can round to a cosine below -1


def compute_student_t_kernel(embeddings: Tensor) -> Tensor:
    """Returns 1 / (1 + Euclidean distance) for all pairs of rows, (N, N) in (0, 1]."""
    squares = embeddings.square().sum(1)  # (N,)
    distances = squares[:, None] + squares[None, :] - 2 * embeddings @ embeddings.T
    return 1 / (1 + torch.sqrt(distances.clamp_min(0) + EPSILON))


def _normalise_rows(kernel: Tensor) -> Tensor:
    return kernel / kernel.sum(1, keepdim=True)
