"""Knowledge distillation (KD) of softened class probabilities."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from indistill.losses.loss import Target
from indistill.losses.options import TEMPERATURES


@dataclass(frozen=True)
class KdLoss:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch. Not scaled: its gradient is two to
    seven times that of 1000 * PKT as it is.

    Attributes:
        temperature: T; larger is softer.

    Reference: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Differs: a divergence in place of the cross-entropy (the same gradient, and zero at equal logits); no term for
    labels; float32.
    """

    temperature: float = TEMPERATURES["kd"]

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns the logarithms of the softened probabilities (N, C) of logits (N, C)."""
        return (self._soften(teacher),)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of logits (N, C)."""
        (p,) = target
        return self.temperature**2 * F.kl_div(self._soften(student), p, log_target=True, reduction="batchmean")

    def _soften(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits.float() / self.temperature, dim=1)
