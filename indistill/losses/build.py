"""From a loss's name to the loss."""

from collections.abc import Callable

from indistill.losses.contrastive import ContrastiveLoss
from indistill.losses.dkd import DkdLoss
from indistill.losses.hint import HintLoss
from indistill.losses.kd import KdLoss
from indistill.losses.loss import Loss
from indistill.losses.options import TEMPERATURES, LossName, LossOptions
from indistill.losses.pkt import PktLoss
from indistill.losses.pkt_eccv import PktEccvLoss
from indistill.losses.regression import RegressionLoss
from indistill.losses.rkd import RkdLoss
from indistill.losses.sp import SpLoss


def build_loss(options: LossOptions, student_dim: int, teacher_dim: int) -> Loss:
    """Returns the loss of a name, without its weight; on the CPU where it has parameters.

    Args:
        options: name, scale and temperature are read. `pkth` gives PKT, which is its loss of the embedding.
        student_dim: width of what the loss reads from the student.
        teacher_dim: width of what it reads from the teacher.
    """
    temperature = options.temperature or TEMPERATURES.get(options.name, 1.0)
    losses: dict[LossName, Callable[[], Loss]] = {
        "pkt": lambda: PktLoss(options.scale),
        "pkt-eccv": PktEccvLoss,
        "kd": lambda: KdLoss(temperature),
        "dkd": lambda: DkdLoss(temperature),
        "hint": lambda: HintLoss(student_dim, teacher_dim),
        "rkd": RkdLoss,
        "sp": SpLoss,
        "contrastive": lambda: ContrastiveLoss(temperature),
        "regression": lambda: RegressionLoss(student_dim, teacher_dim),
        "pkth": lambda: PktLoss(options.scale),
    }
    return losses[options.name]()
