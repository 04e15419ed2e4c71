"""The held-out images measured while a network trains: which epoch was the best, its weights, and when to stop."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indistill.closeness import measure_overlaps, prepare_vectors
from indistill.curriculum.phases import Phase
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import TrainingError
from indistill.stages.graph import Embedder, freeze
from indistill.talk import say
from indistill.tensors import copy_tensors, list_tensors
from indistill.training.checkpoint import keep_random_states
from indistill.training.split import Split, ValidationOptions, has_classes, split_images

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
# The figure of embeddings and labels of a gallery, and of queries.
Retrieval = Callable[[Vectors, Labels, Vectors, Labels], float]

LABEL_FIGURE, NEIGHBOUR_FIGURE = "map@r", "neighbour_overlap"
FIGURES = (LABEL_FIGURE, NEIGHBOUR_FIGURE)
VALIDATED = ("embedding", "classes")  # objectives of phases: the warm-up does not train the embedding


@dataclass(frozen=True)
class Figure:
    """What is measured: the larger, the better.

    Attributes:
        name: in records.
        positions: (M,) int64, of the images that it needs.
        measure: returns it, of the network's embeddings (M, D).
    """

    name: str
    positions: Tensor
    measure: Callable[[Vectors], float]


class Validation:
    """Measures a network after epochs, and keeps the best of its weights.

    The network itself is not run: a copy takes its weights, so that neither its mode nor its statistics change. No
    random generator is drawn from.

    Args:
        network: that is trained.
        embedding: node of its embedding.
        figure: what is measured.
        batches: give the images, as they are.
        options: when to measure, what to keep, when to stop.
    """

    def __init__(
        self, network: nn.Module, embedding: str, figure: Figure, batches: Batches, options: ValidationOptions
    ) -> None:
        self.figure, self.options = figure, options
        self.best, self.epoch = -math.inf, 0
        self.weights: dict[str, Tensor] = {}
        self._batches, self._device = batches, batches.labels.device
        with keep_random_states(self._device):  # a network may draw while it is traced
            self._network = copy.deepcopy(network)
            self._embedder = Embedder(self._network, embedding).eval().requires_grad_(False)

    def is_due(self, phase: Phase, epoch: int, *, last: bool) -> bool:
        """Returns whether an epoch of a phase, counted from 1 in the whole training, is measured."""
        return phase.objective in VALIDATED and (last or epoch % self.options.every == 0)

    def measure(self, network: nn.Module, epoch: int) -> dict[str, float | int | str]:
        """Returns the figure of a network after an epoch, by its name, and keeps the weights if they are the best.

        Raises:
            TrainingError: the embeddings are not finite.
        """
        tensors = list_tensors(network)
        copy_tensors(self._network, tensors)
        vectors = embed_positions(self._embedder, self._batches, self.figure.positions)
        if not np.isfinite(vectors).all():
            raise TrainingError(
                f"the embeddings of the held-out images are not finite after epoch {epoch}: lower --lr, or look at the "
                "images"
            )
        value = self.figure.measure(vectors)
        if value > self.best:
            self.best, self.epoch = value, epoch
            if self.options.keep_best:
                self.weights = {name: tensor.clone() for name, tensor in tensors.items()}
        return {self.figure.name: value}

    def has_run_out(self, epoch: int) -> bool:
        """Returns whether as many epochs as the patience have passed since the best one."""
        return self.options.patience > 0 and self.epoch > 0 and epoch - self.epoch >= self.options.patience

    def finish(self, network: nn.Module, epochs: int) -> None:
        """Gives a network the best weights, if they are to be kept, and says which they are.

        Args:
            network: that was trained.
            epochs: that it was trained for.
        """
        if not self.epoch:
            return
        if self.has_run_out(epochs):
            say(f"stopped after epoch {epochs}: none was better for {self.options.patience} epochs")
        kept = "its weights are kept" if self.weights else f"the weights are those of epoch {epochs}"
        say(f"best epoch {self.epoch}: {self.figure.name} {self.best:.4f} of held-out images; {kept}")
        if self.weights:
            copy_tensors(network, self.weights)

    def capture(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"best": self.best, "epoch": self.epoch, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes the state of a checkpoint over."""
        self.best, self.epoch, self.weights = state["best"], state["epoch"], dict(state["weights"])


def build_label_figure(pixels: Pixels | StreamedPixels, split: Split, retrieval: Retrieval | None) -> Figure:
    """Returns the figure of looking for the held-out images in the gallery: right is what has the same class.

    Raises:
        ValueError: no function measures it.
    """
    if retrieval is None:
        raise ValueError("held-out images with classes need a function that measures how they are found")
    gallery, labels = len(split.gallery), pixels.labels
    positions = np.concatenate((split.gallery, split.held_out))

    def measure(vectors: Vectors) -> float:
        return retrieval(vectors[:gallery], labels[split.gallery], vectors[gallery:], labels[split.held_out])

    return Figure(LABEL_FIGURE, torch.from_numpy(positions), measure)


def build_neighbour_figure(split: Split, batches: Batches, teacher: nn.Module, embedding: str) -> Figure:
    """Returns the figure without labels: the share of the nearest held-out images that teacher and student both name.

    Args:
        split: gives the held-out images.
        batches: give them as they are.
        teacher: is run once, here.
        embedding: node of its embedding.
    """
    positions = torch.from_numpy(split.held_out)
    with keep_random_states(batches.labels.device):
        embedder = freeze(Embedder(teacher, embedding))
    expected = prepare_vectors(embed_positions(embedder, batches, positions), "teacher").neighbours

    def measure(vectors: Vectors) -> float:
        return float(measure_overlaps(expected, prepare_vectors(vectors, "student").neighbours).mean())

    return Figure(NEIGHBOUR_FIGURE, positions, measure)


def embed_positions(embedder: nn.Module, batches: Batches, positions: Tensor) -> Vectors:
    """Returns embeddings (M, D) float32 of the images at some positions (M,), as they are."""
    with torch.inference_mode(), keep_random_states(batches.labels.device):
        parts = [embedder(images).float().cpu().numpy() for images in batches.read_plain(positions)]
    return np.concatenate(parts)


def describe_held_out(pixels: Pixels | StreamedPixels, share: float, seed: int) -> dict[str, dict[str, int | str]]:
    """Returns what config.yaml says of the images that `split_images` holds out: nothing where it holds out none."""
    split = split_images(pixels, share, seed)
    if split is None:
        return {}
    figure = LABEL_FIGURE if has_classes(pixels.classes) else NEIGHBOUR_FIGURE
    counts = {"images": len(split.held_out), "gallery": len(split.gallery), "trained_on": len(split.training)}
    return {"held_out": {"figure": figure, **counts}}
