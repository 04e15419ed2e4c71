"""`train`: supervised training of a teacher, an auxiliary or a baseline."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.config import Recipe
from indistill.curriculum import build_supervised, scale_epochs
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import ModelError
from indistill.models.loading import Network
from indistill.models.weights import save_weights
from indistill.monitor import TrainingMonitor
from indistill.report import write_training_report
from indistill.runs import WEIGHTS_NAMES, create_run, describe_environment
from indistill.settings import RunSettings, describe_run
from indistill.training import train


class ClassStep:
    """Cross-entropy of the logits."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.learnt = network, nn.Module()

    def begin_epoch(self, epoch: int) -> None:
        """Does nothing: all epochs are alike."""

    def prepare(self, _images: Tensor, labels: Tensor, /) -> tuple[Tensor]:
        """Returns the labels (B,) int64."""
        return (labels,)

    def __call__(self, images: Tensor, target: tuple[Tensor, ...], /) -> Tensor:
        """Returns the loss of images (B, 3, H, W) and labels (B,) int64."""
        return F.cross_entropy(self.network(images), target[0])


def run_supervised(network: Network, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings) -> Path:
    """Trains a network on labelled images and returns its run folder.

    The schedule is the recipe's: its epochs at `lr`, then its final epochs at `final_lr`.

    Raises:
        ExistsError: the folder exists.
        ModelError: the network does not give one logit for each class.
        TrainingError: the loss is not finite.
    """
    phases = build_supervised(
        recipe.supervised.epochs, recipe.supervised.lr, (recipe.supervised.final_epochs, recipe.supervised.final_lr)
    )
    if settings.epochs is not None:
        phases = scale_epochs(phases, settings.epochs)
    batches = Batches(pixels, recipe.preprocessing, **recipe.batching, seed=settings.seed, device=settings.device)
    module = network.module.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_logits(network, module, next(batches.draw_epoch())[0], len(pixels.classes))
    config = describe_run("train", network, recipe, settings, phases)
    create_run(settings.out, config, describe_environment(pixels, settings.seed), overwrite=settings.overwrite)
    with TrainingMonitor(phases, len(batches), settings.out / "metrics.jsonl") as monitor:
        train(module, phases, batches, lambda _: ClassStep(module), monitor)
    save_weights(module, settings.out / WEIGHTS_NAMES["train"])
    write_training_report(settings.out / "report.html", config, monitor.records)
    return settings.out


def _check_logits(network: Network, module: nn.Module, example: Tensor, classes: int) -> None:
    module.eval()
    try:
        with torch.no_grad():
            logits = module(example[:2])
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model '{network.spec}' cannot take images of {tuple(example.shape[1:])}: {reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"model '{network.spec}' gives {found} for an image, the data has {classes} classes: "
            f"set the number in the spec, as in '{network.spec.partition('?')[0]}?num_classes={classes}'"
        )
