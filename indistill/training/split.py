"""The images that are held out of a training, chosen by its seed. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indistill.closeness import MINIMUM_IMAGES
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import DataError

GALLERY_IMAGES = 5000  # of the training images at most, in which the held-out ones are looked for

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ValidationOptions:
    """What is held out, and what follows from it.

    Attributes:
        share: of the training images, at most a half; 0 for none.
        every: epochs between measurements.
        patience: epochs without a better figure after which the training ends; 0 for never.
        keep_best: whether the weights in the end are those of the best epoch.
    """

    share: float = 0.0
    every: int = 1
    patience: int = 0
    keep_best: bool = True


@dataclass(frozen=True)
class Split:
    """Positions in a data set, ascending.

    Attributes:
        training: (N,), what is trained on.
        held_out: (H,), what is not.
        gallery: (G,), some of the training images, in which the held-out ones are looked for; none without classes.
    """

    training: Positions
    held_out: Positions
    gallery: Positions


def has_classes(classes: Sequence[str]) -> bool:
    """Returns whether there are labels by which a search can be right or wrong."""
    return len(classes) > 1


def split_images(pixels: Pixels | StreamedPixels, share: float, seed: int) -> Split | None:
    """Returns which images are held out, or None for a share of zero.

    Of each class its share, and never its last image. Images without a label among labelled ones are trained on.

    Args:
        pixels: all images.
        share: that is held out, at most a half.
        seed: of the choice. No other generator is drawn from.

    Raises:
        DataError: too few images can be held out.
    """
    if not share:
        return None
    labels = pixels.labels if has_classes(pixels.classes) else np.zeros(len(pixels), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(pixels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels[labels >= 0], minlength=1)
    candidates = order[(labels[order] >= 0) & (counts[labels[order]] > 1)]
    if not len(candidates):
        raise DataError(
            f"data '{pixels.name}': validation.share holds images out whose class has others, and no class has two: "
            "use --set validation.share=0"
        )
    held_out = _space_evenly(candidates, int(share * len(candidates)))
    needed = 1 if has_classes(pixels.classes) else MINIMUM_IMAGES
    if len(held_out) < needed:
        raise DataError(
            f"data '{pixels.name}': validation.share={share:g} holds out {len(held_out)} of {len(candidates)} images, "
            f"{needed} at least are needed{'' if needed == 1 else ' where there are no classes'}: raise it, or use "
            "--set validation.share=0"
        )
    rest = order[np.isin(order, held_out, invert=True)]
    labelled = rest[labels[rest] >= 0]
    gallery = _space_evenly(labelled, min(GALLERY_IMAGES, len(labelled)))
    if not has_classes(pixels.classes):
        gallery = gallery[:0]
    elif not np.isin(labels[held_out], labels[gallery]).any():
        raise DataError(
            f"data '{pixels.name}': validation.share={share:g} holds out images of classes that are not among the "
            f"{len(gallery)} training images that are searched: raise it, or use --set validation.share=0"
        )
    return Split(np.sort(rest), np.sort(held_out), np.sort(gallery))


def _space_evenly(positions: Positions, count: int) -> Positions:
    """Returns `count` of the positions, spread evenly: of each class in a row its share, up to one."""
    return positions[np.arange(count) * len(positions) // max(count, 1)]
