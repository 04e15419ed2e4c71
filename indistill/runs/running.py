"""What `train` and `compress` have in common: the batches of a run, and a training in its folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from indistill.curriculum.phases import Phase
from indistill.curriculum.schedule import Optimisation
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.models.weights import save_weights
from indistill.parallel.processes import is_first
from indistill.reports.page import write_training_report
from indistill.run_folder import CHECKPOINT_FOLDER, WEIGHTS_NAMES, remove_checkpoints
from indistill.runs.config import Recipe
from indistill.runs.plan import print_schedule
from indistill.runs.settings import RunSettings
from indistill.talk import say
from indistill.training.checkpoint import Checkpoints, read_position
from indistill.training.devices import compile_network, explain_compiler, make_precision
from indistill.training.loggers import open_loggers
from indistill.training.loop import Step, train
from indistill.training.monitor import SilentMonitor, TrainingMonitor
from indistill.training.safety import explain_interruption
from indistill.training.split import Split, split_images
from indistill.training.validation import Validation


def make_batches(
    pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings
) -> tuple[Batches, Split | None]:
    """Returns the batches of the images that are trained on, and which are held out, if any.

    Raises:
        DataError: there are too few images.
    """
    split = split_images(pixels, recipe.validation.share, settings.seed)
    positions = None if split is None else split.training
    batches = Batches(
        pixels,
        recipe.preprocessing,
        **recipe.batching,
        seed=settings.seed,
        device=settings.device,
        positions=positions,
    )
    return batches, split


def make_example(recipe: Recipe, settings: RunSettings) -> Tensor:
    """Returns two empty images (2, 3, S, S), by which shapes are found out."""
    return torch.zeros(2, 3, recipe.data.image_size, recipe.data.image_size, device=settings.device)


def train_run(
    network: nn.Module,
    phases: tuple[Phase, ...],
    batches: Batches,
    build_step: Callable[[Phase], Step],
    settings: RunSettings,
    config: dict[str, Any],
    *,
    options: Optimisation,
    ahead: bool = False,
    validation: Validation | None = None,
) -> None:
    """Trains a network in an open run folder, from its checkpoint if there is one, and writes weights and report. Of
    several processes the first one writes.

    Args:
        network: is trained.
        phases: the schedule.
        batches: the training images.
        build_step: gives the loss of a phase.
        settings: of the run.
        config: the contents of its config.yaml.
        options: how Adam is run.
        ahead: see `indistill.training.loop.train`.
        validation: measures held-out images, where there are some.

    Raises:
        InputError: torch.compile or a logger fails, or the folder cannot be written to.
        TrainingError: the loss is not finite, or the memory is not enough.
    """
    checkpoints = Checkpoints(settings.out / CHECKPOINT_FOLDER, settings.checkpoint_every_s)
    precision = make_precision(settings.precision, settings.device)

    def build(phase: Phase) -> Step:
        step = build_step(phase)
        if settings.compiled:
            compile_network(step.network)
        return step

    with _watch(phases, len(batches), settings, config) as monitor:
        with explain_compiler(compiled=settings.compiled):
            train(
                network,
                phases,
                batches,
                build,
                monitor,
                options,
                ahead=ahead,
                checkpoints=checkpoints,
                precision=precision,
                validation=validation,
            )
        if isinstance(monitor, TrainingMonitor):
            write_training_report(settings.out / "report.html", config, monitor.records)
            save_weights(network, settings.out / WEIGHTS_NAMES[config["command"]])  # last: the run is complete with it
    if is_first():
        remove_checkpoints(settings.out)


@contextmanager
def _watch(
    phases: tuple[Phase, ...], steps: int, settings: RunSettings, config: dict[str, Any]
) -> Iterator[TrainingMonitor | SilentMonitor]:
    if not is_first():
        yield SilentMonitor()
        return
    print_schedule(phases, settings.epochs)
    if settings.resume and read_position(settings.out / CHECKPOINT_FOLDER) is None:
        say(f"{settings.out} has no checkpoint: the training begins with the first epoch")
    with (
        explain_interruption(settings.out / CHECKPOINT_FOLDER, steps),
        open_loggers(settings.loggers, settings.out, config) as loggers,
        TrainingMonitor(phases, steps, settings.out / "metrics.jsonl", loggers) as monitor,
    ):
        yield monitor
