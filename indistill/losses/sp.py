"""Similarity-preserving distillation (SP): equal inner products of the batch."""

from torch import Tensor
from torch.nn import functional as F

from indistill.losses.loss import Target

SCALE = 300.0  # brings the gradient to that of 1000 * PKT; the paper weighs by 3000, beside a cross-entropy
EPSILON = 1e-7


class SpLoss:
    """`SCALE` times the mean squared difference of the row-normalised Gram matrices. Teacher and student may differ in
    width.

    Reference: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, section 3.
    Differs: one layer, the embedding; an epsilon in the norm; float32.
    """

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns the Gram matrix (N, N), its rows of length one, of embeddings (N, D_t)."""
        return (_compare_rows(teacher),)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D_s)."""
        (gram,) = target
        return SCALE * F.mse_loss(_compare_rows(student), gram)


def _compare_rows(embeddings: Tensor) -> Tensor:
    rows = embeddings.float()
    return F.normalize(rows @ rows.T, eps=EPSILON)
