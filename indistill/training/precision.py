"""The names of the precisions that networks are trained in. Needs no torch."""

from typing import Literal

PrecisionName = Literal["32", "bf16", "16"]
