"""Knowledge distillation (KD) of softened class probabilities."""

from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 4.0


def compute_kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch, a scalar. Not scaled
    further: its gradient is near that of 1000 * PKT as it is.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T; larger is softer.

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    Differs: a divergence in place of the cross-entropy (the same gradient, and zero at equal logits); no term for
    labels; float32.
    """
    q = F.log_softmax(student.float() / temperature, dim=1)  # (N, C)
    p = F.log_softmax(teacher.float() / temperature, dim=1)  # (N, C)
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")
