"""What `train` and `compress` have in common beside the recipe: where a run goes and how it is seeded."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from indistill import __version__
from indistill.curriculum.phases import Phase
from indistill.files.formats import RUN
from indistill.models.loading import Network
from indistill.parallel.processes import count_processes
from indistill.run_folder import Command
from indistill.runs.config import Recipe
from indistill.training.loggers import LoggerName
from indistill.training.precision import PrecisionName
from indistill.training.validation import Retrieval


@dataclass(frozen=True)
class RunSettings:
    """Where a run goes and how it is seeded.

    Attributes:
        out: the run folder.
        data: the data spec, written down.
        epochs: total to which the schedule is scaled, or None for the recipe's own.
        seed: of initial weights, order and augmentation.
        device: where training runs.
        overwrite: whether an older run in `out` is replaced.
        resume: whether the run in `out` goes on.
        checkpoint_every_s: seconds between checkpoints within an epoch.
        precision: of the networks; see `indistill.training.devices.make_precision`.
        compiled: whether the student's networks run as compiled code.
        loggers: where the records of the epochs go beside metrics.jsonl.
        retrieval: measures how held-out images with classes are found, where some are held out.
    """

    out: Path
    data: str
    epochs: int | None
    seed: int
    device: torch.device
    overwrite: bool
    resume: bool = False
    checkpoint_every_s: float = 60.0
    precision: PrecisionName = "32"
    compiled: bool = False
    loggers: tuple[LoggerName, ...] = ()
    retrieval: Retrieval | None = None


def describe_run(
    command: Command, network: Network, recipe: Recipe, settings: RunSettings, phases: tuple[Phase, ...]
) -> dict[str, Any]:
    """Returns the contents of config.yaml that both commands write."""
    return {
        "command": command,
        "format": RUN.version,
        "version": __version__,
        "network": network.describe(),
        "start": describe_start(network),
        "parameters": network.count_parameters(),
        "data": settings.data,
        "seed": settings.seed,
        "device": settings.device.type,
        "processes": count_processes(),
        "precision": settings.precision,
        "compiled": settings.compiled,
        "recipe": recipe.model_dump(mode="json"),
        "schedule": [asdict(phase) for phase in phases],
    }


def describe_start(network: Network) -> str:
    """Returns what a trained network's weights started from: a file, or the spec."""
    return network.source if network.weights is None else str(network.weights.resolve())
