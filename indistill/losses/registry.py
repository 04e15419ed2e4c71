"""The losses of the embedding stage by name. A weight of 1 is sensible for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from indistill.losses import contrastive, dkd, kd, pkt
from indistill.losses.hint import HintLoss
from indistill.losses.pkt_eccv import compute_pkt_eccv_loss
from indistill.losses.regression import RegressionLoss
from indistill.losses.rkd import compute_rkd_loss
from indistill.losses.sp import compute_sp_loss

Loss = Callable[[Tensor, Tensor], Tensor]  # (student, teacher) to a scalar


@dataclass(frozen=True)
class LossKind:
    """What a caller must know of a loss before building it.

    Attributes:
        reads: what it compares.
        temperature: the default; none where the loss has no temperature.
        learns: whether it has parameters, and is an `nn.Module`.
    """

    reads: Literal["embedding", "logits"]
    temperature: float | None = None
    learns: bool = False


LOSSES = {
    "pkt": LossKind("embedding"),
    "pkt-eccv": LossKind("embedding"),
    "kd": LossKind("logits", temperature=kd.TEMPERATURE),
    "dkd": LossKind("logits", temperature=dkd.TEMPERATURE),
    "hint": LossKind("embedding", learns=True),
    "rkd": LossKind("embedding"),
    "sp": LossKind("embedding"),
    "contrastive": LossKind("embedding", temperature=contrastive.TEMPERATURE),
    "regression": LossKind("embedding", learns=True),
}


def build_loss(name: str, *, student_dim: int, teacher_dim: int, temperature: float | None = None) -> Loss:
    """Returns a loss of (student, teacher); an `nn.Module` on the CPU if it learns. PKT is times `pkt.SCALE`.

    Args:
        name: one of `LOSSES`.
        student_dim: width of what is read from the student.
        teacher_dim: width of what is read from the teacher.
        temperature: in place of the loss's default.

    Raises:
        ValueError: no such loss; a temperature for a loss without one, or not above zero; logits of unequal width.
    """
    if name not in LOSSES:
        raise ValueError(f"loss '{name}' is not one of {', '.join(LOSSES)}")
    kind = LOSSES[name]
    if temperature is not None and kind.temperature is None:
        raise ValueError(f"loss '{name}' has no temperature, {temperature} was given")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"loss '{name}' needs a temperature above zero, {temperature} was given")
    if kind.reads == "logits" and student_dim != teacher_dim:
        raise ValueError(f"loss '{name}' needs logits of one width, not {student_dim} (student) and {teacher_dim}")
    if kind.learns:
        return HintLoss(student_dim, teacher_dim) if name == "hint" else RegressionLoss(student_dim, teacher_dim)
    if kind.temperature is None:
        losses: dict[str, Loss] = {
            "pkt": partial(pkt.compute_pkt_loss, scale=pkt.SCALE),
            "pkt-eccv": compute_pkt_eccv_loss,
            "rkd": compute_rkd_loss,
            "sp": compute_sp_loss,
        }
        return losses[name]
    softened = {
        "kd": kd.compute_kd_loss,
        "dkd": dkd.compute_dkd_loss,
        "contrastive": contrastive.compute_contrastive_loss,
    }
    return partial(softened[name], temperature=kind.temperature if temperature is None else temperature)
