"""Checkpoints: all that a training needs to go on as if it had never stopped.

`checkpoint/0000001200-9f86d081884c7d65.pt` is the state after 1,200 batches; the second part is the start of the
file's SHA-256, by which a damaged file is known. Tensors and plain values only, read with `weights_only`.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import torch
from torch import Tensor

from indistill.errors import InputError
from indistill.files.archives import load_archive
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.files.formats import CHECKPOINT, require_format
from indistill.files.hashing import hash_file
from indistill.talk import say

KEPT = 2
DIGITS = 16  # of the SHA-256 in a name
EPOCHS_EVERY_S = 1.0  # epochs shorter than this do not each have a checkpoint


@dataclass(frozen=True)
class Snapshot:
    """The state between two batches.

    Attributes:
        phase: index of the phase.
        epoch: epochs done in the phase.
        batch: batches done in the epoch.
        durations: epochs of each phase, as they stand.
        order: state of the generator of order and augmentation when the epoch began.
        random: states of torch's global generators, by device type.
        student: parameters and buffers.
        learnt: parameters and buffers of what is trained beside the student.
        averaged: the moving average; empty where there is none.
        frozen: names of the student's parameters that take no gradient.
        optimiser: its state dict.
        total: sum of the epoch's losses so far.
        seconds: time that the epoch has taken so far.
        records: figures of all epochs done.
        validation: the best epoch so far, its figure and weights; empty where nothing is held out.
        threads: PyTorch's number of threads.
        precision: the factor by which gradients of 16 bits are scaled, and how it changes; empty for others.
    """

    phase: int
    epoch: int
    batch: int
    durations: list[int]
    order: Tensor
    random: dict[str, Tensor]
    student: dict[str, Tensor]
    learnt: dict[str, Tensor]
    averaged: dict[str, Tensor]
    frozen: list[str]
    optimiser: dict[str, Any]
    total: Tensor
    seconds: float
    records: list[dict[str, float | int | str]]
    validation: dict[str, Any]
    threads: int
    precision: dict[str, float | int]


class Checkpoints:
    """The checkpoints of a run, the last two of them.

    Args:
        folder: where they lie; made when the first one is written.
        every_s: seconds between checkpoints within an epoch. One is written at the end of each epoch as well, but not
            more often than once a second.
    """

    def __init__(self, folder: Path, every_s: float) -> None:
        self._folder, self._every_s = folder, every_s
        self._written_at = time.monotonic()

    def is_due(self, *, epoch_ends: bool) -> bool:
        """Returns whether it is time to write."""
        waited = time.monotonic() - self._written_at
        return waited >= (min(self._every_s, EPOCHS_EVERY_S) if epoch_ends else self._every_s)

    def write(self, snapshot: Snapshot, position: int) -> None:
        """Writes a snapshot after `position` batches, complete or not at all, and removes all but the last two.

        Raises:
            InputError: the folder cannot be written to.
        """
        unnamed = self._folder / f"{position:010d}"
        try:
            self._folder.mkdir(exist_ok=True)
            with write_aside(unnamed) as stream:
                contents = {field.name: getattr(snapshot, field.name) for field in fields(snapshot)}
                torch.save({"format": CHECKPOINT.version, **contents}, stream)
            digest = hash_file(name_aside(unnamed))[:DIGITS]
            move_into_place(name_aside(unnamed), self._folder / f"{unnamed.name}-{digest}.pt")
            for path in self._list()[:-KEPT]:
                path.unlink()
        except OSError as error:
            raise InputError(
                f"the checkpoint in {self._folder} cannot be written: {error.strerror}; the one before it is kept: "
                "make room and go on with --resume"
            ) from error
        self._written_at = time.monotonic()

    def read(self) -> Snapshot | None:
        """Returns the newest snapshot that is whole, or None where there is none. Damaged ones are removed.

        Raises:
            InputError: it was written by another version of indistill.
        """
        for path in reversed(self._list()):
            if hash_file(path)[:DIGITS] != path.stem.partition("-")[2]:
                say(f"warning: {path} is damaged; going back to the one before")
                path.unlink()
                continue
            return _read_snapshot(path)
        return None

    def _list(self) -> list[Path]:
        return sorted(self._folder.glob("*.pt"))


def _read_snapshot(path: Path) -> Snapshot:
    try:
        contents = load_archive(path)
        if isinstance(contents, dict) and "format" in contents:
            require_format(CHECKPOINT, contents["format"], f"the checkpoint {path}")
        types = {name: get_origin(kind) or kind for name, kind in get_type_hints(Snapshot).items()}
        if not isinstance(contents, dict) or contents.keys() != {"format", *types}:
            raise ValueError("it has other parts than a checkpoint")
        values = {name: contents[name] for name in types}
        odd = [name for name, value in values.items() if not isinstance(value, types[name])]
        if odd:
            raise ValueError(f"its {odd[0]} is none")
        return Snapshot(**values)
    except ValueError as error:
        raise InputError(f"{path} is no checkpoint of indistill ({error}); start anew with --overwrite") from error


def read_position(folder: Path) -> int | None:
    """Returns after how many batches the newest checkpoint in a folder was written, None where there is none."""
    newest = max(folder.glob("*.pt"), default=None)
    return None if newest is None else int(newest.stem.partition("-")[0])


def get_random_states(device: torch.device) -> dict[str, Tensor]:
    """Returns the states of torch's global generators: of the CPU, and of the GPU that trains."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def keep_random_states(device: torch.device) -> AbstractContextManager[None]:
    """Returns a context after which torch's global generators are as they were before."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Sets the states of torch's global generators."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
