"""The names of the criteria by which `channels.py` keeps a teacher's channels. Needs no torch."""

from typing import Literal, get_args

Criterion = Literal["l1", "l2", "fpgm", "bn-scale", "taylor", "activation", "random"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
DATA_CRITERIA: tuple[Criterion, ...] = ("taylor", "activation")  # they look at images
