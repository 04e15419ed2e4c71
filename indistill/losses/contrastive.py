"""Softened similarities in the batch: each row's neighbours, by probability and by cosine."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from indistill.losses.loss import Target
from indistill.losses.options import TEMPERATURES

SIMILARITY_SCALE = 10.0  # brings the gradient of the mean squared error to that of the divergence
EPSILON = 1e-7


@dataclass(frozen=True)
class ContrastiveLoss:
    """KL(P || Q), the mean over rows, plus `SIMILARITY_SCALE` times the mean squared error of the cosines. P (teacher)
    and Q (student) are softmax over the other rows of the batch of cosine / temperature. Teacher and student may differ
    in width. The divergence is not scaled: its gradient is two to four times that of 1000 * PKT as it is.

    Attributes:
        temperature: of both sides; smaller looks at fewer neighbours.

    Reference: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021
    (the softened similarities); Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (the mean
    squared error of the similarities).
    Differs: compared with the other rows of the batch, not with a queue, hence no row with itself; one temperature; a
    divergence in place of the cross-entropy (the same gradient, and zero at equal cosines); cosines, not inner
    products; float32.
    """

    temperature: float = TEMPERATURES["contrastive"]

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns cosines (N, N - 1) and the logarithms of P (N, N - 1) of embeddings (N, D_t)."""
        cosines = _compare_others(teacher)
        return cosines, F.log_softmax(cosines / self.temperature, dim=1)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D_s)."""
        teacher_cosines, p = target
        cosines = _compare_others(student)
        q = F.log_softmax(cosines / self.temperature, dim=1)
        divergence = F.kl_div(q, p, log_target=True, reduction="batchmean")
        return divergence + SIMILARITY_SCALE * F.mse_loss(cosines, teacher_cosines)


def _compare_others(embeddings: Tensor) -> Tensor:
    """Returns the cosines of each row with the others, (N, N - 1)."""
    unit = F.normalize(embeddings.float(), eps=EPSILON)
    count = len(unit)
    others = ~torch.eye(count, dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[others].view(count, count - 1)
