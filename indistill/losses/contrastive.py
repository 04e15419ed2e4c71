"""Softened similarities in the batch: each row's neighbours, by probability and by cosine."""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1
SIMILARITY_SCALE = 10.0  # brings the gradient of the mean squared error to that of the divergence
EPSILON = 1e-7


def compute_contrastive_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = TEMPERATURE, similarity_weight: float = 1.0
) -> Tensor:
    """Returns KL(P || Q), the mean over rows, plus the mean squared error of the cosines, a scalar. Teacher and student
    may differ in width. The divergence is not scaled: its gradient is one to four times that of 1000 * PKT as it is.

    P (teacher) and Q (student) are softmax over the other rows of the batch of cosine / temperature.

    Args:
        student: embeddings (N, D_s).
        teacher: embeddings (N, D_t).
        temperature: of both; smaller looks at fewer neighbours.
        similarity_weight: of `SIMILARITY_SCALE` times the mean squared error of the cosines; 0 leaves it out.

    Reference: Fang et al., "SEED: Self-supervised Distillation for Visual Representation", ICLR 2021
    (the softened similarities); Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (the mean
    squared error of the similarities).
    Differs: compared with the other rows of the batch, not with a queue, hence no row with itself; one temperature; a
    divergence in place of the cross-entropy (the same gradient, and zero at equal cosines); cosines, not inner
    products; float32.
    """
    imitation, target = _compare_others(student), _compare_others(teacher)
    q = F.log_softmax(imitation / temperature, dim=1)
    p = F.log_softmax(target / temperature, dim=1)
    divergence = F.kl_div(q, p, log_target=True, reduction="batchmean")
    return divergence + similarity_weight * SIMILARITY_SCALE * F.mse_loss(imitation, target)


def _compare_others(embeddings: Tensor) -> Tensor:
    """Returns the cosines of each row with the others, (N, N - 1)."""
    unit = F.normalize(embeddings.float(), eps=EPSILON)
    count = len(unit)
    others = ~torch.eye(count, dtype=torch.bool, device=unit.device)
    return (unit @ unit.T)[others].view(count, count - 1)
