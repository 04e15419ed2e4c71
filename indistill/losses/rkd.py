"""Relational knowledge distillation (RKD): equal distances of pairs and equal angles of triples."""

import torch
from torch import Tensor
from torch.nn import functional as F

DISTANCE_WEIGHT = 25.0
ANGLE_WEIGHT = 50.0
EPSILON = 1e-12  # of a squared distance
NORM_EPSILON = 1e-7


def compute_rkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns `DISTANCE_WEIGHT` times the distance-wise and `ANGLE_WEIGHT` times the angle-wise loss, a scalar. Teacher
    and student may differ in width. Not scaled further: with these weights the gradient is two to eleven times that
    of 1000 * PKT.

    Memory grows with N^3 (the angles) and N^2 D (the differences): 8 MB and 33 MB at N = 128, D = 512.

    Args:
        student: embeddings (N, D_s).
        teacher: embeddings (N, D_t).

    Reference: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019 (RKD-D and RKD-A).
    Differs: means over pairs and triples of different rows, where the paper sums; an epsilon inside square root and
    norm; embeddings are taken as they are, never normalised; float32.
    """
    student_edges, teacher_edges = _subtract_pairs(student.float()), _subtract_pairs(teacher.float())
    distance = F.smooth_l1_loss(_measure_distances(student_edges), _measure_distances(teacher_edges))
    # Angles with a leg from j to j are 0 in both: they add nothing to the sum, and are not counted.
    angle = F.smooth_l1_loss(_measure_angles(student_edges), _measure_angles(teacher_edges), reduction="sum")
    count = len(student)
    return DISTANCE_WEIGHT * distance + ANGLE_WEIGHT * angle / max(count * (count - 1) * (count - 2), 1)


def _subtract_pairs(embeddings: Tensor) -> Tensor:
    """Returns the edges (N, N, D): [j, i] is row i minus row j."""
    return embeddings[None, :] - embeddings[:, None]


def _measure_distances(edges: Tensor) -> Tensor:
    """Returns the Euclidean distances of different rows over their mean, (N * (N - 1),)."""
    distances = torch.sqrt(edges.square().sum(2) + EPSILON)[_mark_different(len(edges), edges.device)]
    return distances / distances.mean()


def _measure_angles(edges: Tensor) -> Tensor:
    """Returns cosines (N, N * (N - 1)): row j has those of the angles at j between all pairs of different rows."""
    unit = F.normalize(edges, dim=2, eps=NORM_EPSILON)
    return (unit @ unit.transpose(1, 2))[:, _mark_different(len(edges), edges.device)]


def _mark_different(count: int, device: torch.device) -> Tensor:
    return ~torch.eye(count, dtype=torch.bool, device=device)
