"""Similarity-preserving distillation (SP): equal inner products of the batch."""

from torch import Tensor
from torch.nn import functional as F

SCALE = 300.0  # brings the gradient to that of 1000 * PKT; the paper weighs by 3000, beside a cross-entropy
EPSILON = 1e-7


def compute_sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns `SCALE` times the mean squared difference of the row-normalised Gram matrices, a scalar. Teacher and
    student may differ in width.

    Args:
        student: embeddings (N, D_s), or feature maps, which are flattened.
        teacher: embeddings (N, D_t), or feature maps.

    Reference: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
    Differs: one layer, the embedding; an epsilon in the norm; float32.
    """
    return SCALE * F.mse_loss(_compare_rows(student), _compare_rows(teacher))


def _compare_rows(features: Tensor) -> Tensor:
    """Returns the Gram matrix (N, N) with rows of Euclidean norm 1."""
    rows = features.float().flatten(1)
    return F.normalize(rows @ rows.T, eps=EPSILON)
