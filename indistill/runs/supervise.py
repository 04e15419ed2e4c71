"""`train`: supervised training of a teacher, an auxiliary or a baseline."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.curriculum.phases import Phase, build_supervised, scale_epochs
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import ModelError, describe_error
from indistill.models.loading import Network
from indistill.parallel.processes import on_first, weigh_share
from indistill.runs.config import Recipe
from indistill.runs.environment import describe_environment
from indistill.runs.resume import hold_run, open_run
from indistill.runs.running import make_batches, make_example, train_run
from indistill.runs.settings import RunSettings, describe_run
from indistill.training.loop import Step
from indistill.training.validation import Validation, build_label_figure, describe_held_out


class ClassStep:
    """Cross-entropy of the logits."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.learnt = network, nn.Module()

    def begin_epoch(self, _epoch: int, /) -> None:
        """Nothing: the loss is the same in each epoch."""

    def prepare(self, _images: Tensor, labels: Tensor, /) -> Tensor:
        """Returns the labels (B,) int64."""
        return labels

    def __call__(self, images: Tensor, labels: Tensor, /) -> Tensor:
        """Returns the loss of images (B, 3, H, W) and labels (B,) int64."""
        return weigh_share(F.cross_entropy(self.network(images).float(), labels))


def run_supervised(network: Network, pixels: Pixels | StreamedPixels, recipe: Recipe, settings: RunSettings) -> Path:
    """Trains a network on labelled images and returns its run folder.

    The schedule is the recipe's: its epochs at `lr`, then its final epochs at `final_lr`.

    Raises:
        DataError: there are too few images to hold some out.
        ExistsError: the folder exists.
        InputError: there is no such run to resume.
        ModelError: the network does not give one logit for each class.
        TrainingError: the loss is not finite.
    """
    phases = build_supervised(
        recipe.supervised.epochs, recipe.supervised.lr, (recipe.supervised.final_epochs, recipe.supervised.final_lr)
    )
    if settings.epochs is not None:
        phases = scale_epochs(phases, settings.epochs)
    batches, split = make_batches(pixels, recipe, settings)
    module = network.module.to(settings.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    _check_logits(network, module, make_example(recipe, settings), len(pixels.classes))
    config = describe_run("train", network, recipe, settings, phases)
    config |= describe_held_out(pixels, recipe.validation.share, settings.seed)
    with hold_run(settings):
        if not on_first(lambda: open_run(settings, config, describe_environment(pixels, settings.seed))):
            return settings.out
        validation = None
        if split is not None:
            figure = build_label_figure(pixels, split, settings.retrieval)
            validation = Validation(module, network.embedding, figure, batches, recipe.validation.options)
        options = recipe.supervised_optimisation

        def build(_phase: Phase) -> Step:
            return ClassStep(module)

        train_run(module, phases, batches, build, settings, config, options=options, validation=validation)
    return settings.out


def _check_logits(network: Network, module: nn.Module, example: Tensor, classes: int) -> None:
    module.eval()
    try:
        with torch.no_grad():
            logits = module(example)
    except RuntimeError as error:
        raise ModelError(
            f"model '{network.spec}' cannot take images of {tuple(example.shape[1:])}: {describe_error(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(
            f"model '{network.spec}' gives {found} for an image, the data has {classes} classes: "
            f"set the number in the spec, as in '{network.spec.partition('?')[0]}?num_classes={classes}'"
        )
