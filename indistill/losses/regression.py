"""Regression of the teacher's embedding through a learnt linear projection that is dropped at export."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-7


class RegressionLoss(nn.Module):
    """One minus the cosine between the teacher and a learnt projection of the student, or their mean squared error; the
    mean over the batch, a scalar. Not scaled: the gradient of both is a tenth to a half of that of 1000 * PKT.

    Only the loss reads the projection: the student is exported without it.

    Reference: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022 (its direction
    alignment is this cosine); Romero et al., "FitNets", ICLR 2015 (mean squared error).
    Differs: one projection, linear, with neither ReLU nor ensemble; for the mean squared error as in `HintLoss`, which
    takes feature maps besides; float32.
    """

    def __init__(self, student_dim: int, teacher_dim: int, *, measure: Literal["cosine", "mse"] = "cosine") -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim)
        self.measure = measure

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss.

        Args:
            student: embeddings (N, student_dim).
            teacher: embeddings (N, teacher_dim).

        Raises:
            ValueError: the shapes do not fit.
        """
        imitation = F.linear(student.float(), self.projection.weight.float(), self.projection.bias.float())
        if imitation.shape != teacher.shape:
            raise ValueError(
                f"the student's embeddings become {tuple(imitation.shape)}, the teacher's are {tuple(teacher.shape)}"
            )
        if self.measure == "mse":
            return F.mse_loss(imitation, teacher.float())
        cosines = (F.normalize(imitation, eps=EPSILON) * F.normalize(teacher.float(), eps=EPSILON)).sum(1)
        return 1 - cosines.mean()
