"""Regression of the direction of the teacher's embedding, through a learnt projection that is dropped at export."""

from torch import Tensor, nn
from torch.nn import functional as F

from indistill.losses.loss import Target

SCALE = 4.0  # brings the gradient to that of 1000 * PKT at 128 rows
EPSILON = 1e-7


class RegressionLoss(nn.Module):
    """`SCALE` times one minus the cosine between the teacher's embedding and a learnt projection of the student's, the
    mean over the batch. Lengths play no part, which is what sets it apart from `HintLoss`.

    Only the loss reads the projection: the student is exported without it.

    Reference: Chen et al., "Improved Feature Distillation via Projector Ensemble", NeurIPS 2022: the direction
    alignment.
    Differs: one projection, linear, with neither ReLU nor ensemble; float32.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim)

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns embeddings (N, teacher_dim) of length one."""
        return (F.normalize(teacher.float(), eps=EPSILON),)

    def forward(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, student_dim)."""
        (teacher,) = target
        imitation = F.normalize(self.projection(student.float()), eps=EPSILON)
        return SCALE * (1 - (imitation * teacher).sum(1).mean())
