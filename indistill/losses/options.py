"""The names and settings of the losses. Needs no torch."""

from dataclasses import dataclass
from typing import Literal

LossName = Literal["pkt", "pkt-eccv", "kd", "dkd", "hint", "rkd", "sp", "contrastive", "regression", "pkth"]
SupervisedName = Literal["none", "cross-entropy", "triplet", "multi-similarity", "supcon"]

TEMPERATURES = {"kd": 4.0, "dkd": 4.0, "contrastive": 0.1}  # the default of each loss that has one
LOGIT_LOSSES = ("kd", "dkd")


@dataclass(frozen=True)
class LossOptions:
    """The loss of the embedding stage.

    Attributes:
        name: of the distillation loss.
        weight: what it is multiplied by; each loss is scaled so that 1 is sensible.
        scale: what PKT is multiplied by besides, in `pkt` and `pkth`: 1 as published.
        temperature: in place of the loss's default; only for those in `TEMPERATURES`.
        supervised: a loss of the labels that is added.
        supervised_weight: what that is multiplied by.
    """

    name: LossName = "pkt"
    weight: float = 1.0
    scale: float = 1000.0
    temperature: float | None = None
    supervised: SupervisedName = "none"
    supervised_weight: float = 1.0
