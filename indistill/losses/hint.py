"""FitNets' hint: mean squared error through a learnt regressor, the encoder that InDistill's pruning avoids."""

from torch import Tensor, nn
from torch.nn import functional as F

from indistill.losses.loss import Target

SCALE = 4.0  # brings the gradient to two to five times that of 1000 * PKT at 128 rows of order 1


class HintLoss(nn.Module):
    """`SCALE` times the mean squared error between the teacher's embedding and a learnt linear map of the student's.
    Its gradient grows with the teacher's scale.

    Only the loss reads the regressor: the student is exported without it.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, section 2.2.
    Differs: the embedding in place of a middle layer (`targets.alignment=regressor` is for stages); the mean over all
    numbers, where the paper has half of the sum over a row's; float32.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_dim, teacher_dim)

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns embeddings (N, teacher_dim) as they are."""
        return (teacher.float(),)

    def forward(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, student_dim)."""
        (teacher,) = target
        return SCALE * F.mse_loss(self.regressor(student.float()), teacher)


def build_regressor(student_width: int, teacher_width: int, *, maps: bool) -> nn.Module:
    """Returns a learnt linear map of the channels of a stage: a 1x1 convolution for maps, else a linear layer."""
    return nn.Conv2d(student_width, teacher_width, 1) if maps else nn.Linear(student_width, teacher_width)
