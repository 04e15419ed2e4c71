"""Small sets in memory: every image resized once, as one uint8 array. Needs no torch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indistill.data.sets import ImageSet
from indistill.errors import DataError
from indistill.images import SkippedImage
from indistill.preprocess import PixelArray, Preprocessing

DECODERS = 4
MEMORY_LIMIT_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Pixels:
    """The readable images of a set.

    Attributes:
        name: the data spec.
        images: (N, S, S, 3) uint8.
        labels: (N,) int64, -1 where there is none.
        names: of each image.
        classes: the class names.
        skipped: what could not be read; none of it is counted in N.
    """

    name: str
    images: PixelArray
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]

    def __len__(self) -> int:
        return len(self.images)


def load_pixels(
    images: ImageSet, preprocessing: Preprocessing, on_progress: Callable[[int], None] = lambda _: None
) -> Pixels:
    """Returns all images of a set, resized, in their order.

    Args:
        images: the set.
        preprocessing: gives the size.
        on_progress: called with 1 for each image done.

    Raises:
        DataError: the pixels do not fit the memory limit, or no image can be read.
    """
    count, side = len(images.names), preprocessing.image_size
    if count * side * side * 3 > MEMORY_LIMIT_BYTES:
        raise DataError(
            f"data '{images.name}': {count} images of {side}x{side} need {count * side * side * 3 / 2**30:.1f} GiB, "
            f"more than the limit of {MEMORY_LIMIT_BYTES / 2**30:.0f}; use fewer images or a smaller --image-size"
        )
    array = np.empty((count, side, side, 3), dtype=np.uint8)
    reasons: dict[int, str] = {}

    def load(position: int) -> None:
        try:
            array[position] = preprocessing.resize(images.read(position))
        except DataError as error:
            reasons[position] = str(error)

    with ThreadPoolExecutor(DECODERS) as pool:
        for _ in pool.map(load, range(count)):
            on_progress(1)
    kept = np.array([p for p in range(count) if p not in reasons], dtype=np.int64)
    if not len(kept):
        first = min(reasons)
        raise DataError(
            f"data '{images.name}': none of {count} images can be read; {images.names[first]}: {reasons[first]}"
        )
    return Pixels(
        images.name,
        array if len(kept) == count else array[kept],
        images.labels[kept],
        tuple(images.names[p] for p in kept),
        images.classes,
        tuple(SkippedImage(images.names[p], reasons[p]) for p in sorted(reasons)),
    )
