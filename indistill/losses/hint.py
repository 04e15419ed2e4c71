"""FitNets' hint: mean squared error through a learnt regressor, the encoder that InDistill's pruning avoids."""

from torch import Tensor, nn
from torch.nn import functional as F


class HintLoss(nn.Module):
    """Mean squared error between the teacher and a learnt linear map of the student, a scalar; on feature maps the map
    is a 1x1 convolution. Not scaled: its gradient is a tenth to a half of that of 1000 * PKT for features of order 1,
    and grows with the teacher's scale.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (the loss of the hints).
    Differs: the mean over all numbers, where the paper has half of the sum over a row's; a 1x1 regressor where the
    paper's has a kernel that makes sizes equal; float32.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_dim, teacher_dim)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the loss.

        Args:
            student: embeddings (N, student_dim), or feature maps (N, student_dim, H, W).
            teacher: embeddings (N, teacher_dim), or feature maps (N, teacher_dim, H, W).

        Raises:
            ValueError: the shapes do not fit; the sizes of feature maps must be equal.
        """
        weight, bias = self.regressor.weight.float(), self.regressor.bias.float()
        if student.ndim == 2:
            imitation = F.linear(student.float(), weight, bias)
        else:
            imitation = F.conv2d(student.float(), weight[:, :, None, None], bias)
        if imitation.shape != teacher.shape:
            raise ValueError(
                f"the student's features become {tuple(imitation.shape)}, the teacher's are {tuple(teacher.shape)}"
            )
        return F.mse_loss(imitation, teacher.float())
