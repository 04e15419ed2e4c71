"""Relational knowledge distillation (RKD): equal distances of pairs and equal angles of triples."""

import torch
from torch import Tensor
from torch.nn import functional as F

from indistill.losses.loss import Target

DISTANCE_WEIGHT = 25.0
ANGLE_WEIGHT = 50.0
EPSILON = 1e-12  # of a squared distance
NORM_EPSILON = 1e-7


class RkdLoss:
    """`DISTANCE_WEIGHT` times the distance-wise and `ANGLE_WEIGHT` times the angle-wise loss. Teacher and student may
    differ in width. Not scaled: with these weights the gradient is two to four times that of 1000 * PKT.

    Memory grows with N^3 (the angles) and N^2 D (the differences): 8 MB and 33 MB at N = 128, D = 512.

    Reference: Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019, section 3.2.
    Differs: means over pairs and triples of different rows, where the paper sums; an epsilon inside square root and
    norm; embeddings are taken as they are, never normalised; float32.
    """

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns distances (N * (N - 1),) and cosines of angles (N, N * (N - 1)) of embeddings (N, D_t)."""
        return _measure_relations(teacher)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D_s)."""
        teacher_distances, teacher_angles = target
        distances, angles = _measure_relations(student)
        distance = F.smooth_l1_loss(distances, teacher_distances)
        # Angles with a leg from j to j are 0 in both: they add nothing to the sum, and are not counted.
        angle = F.smooth_l1_loss(angles, teacher_angles, reduction="sum")
        count = len(student)
        return DISTANCE_WEIGHT * distance + ANGLE_WEIGHT * angle / max(count * (count - 1) * (count - 2), 1)


def _measure_relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, of rows (N, D), the Euclidean distances of different rows over their mean (N * (N - 1),), and cosines
    (N, N * (N - 1)): row j has those of the angles at j between all pairs of different rows.
    """
    rows = embeddings.float()
    edges = rows[None, :] - rows[:, None]  # (N, N, D): [j, i] is row i minus row j
    different = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    distances = torch.sqrt(edges.square().sum(2) + EPSILON)[different]
    unit = F.normalize(edges, dim=2, eps=NORM_EPSILON)
    return distances / distances.mean(), (unit @ unit.transpose(1, 2))[:, different]
