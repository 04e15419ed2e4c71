"""The readable images of a set, resized: as one uint8 array in memory, or decoded when they are asked for. No torch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indistill.data.ahead import count_decoders, map_ahead
from indistill.data.sets import ImageSet
from indistill.errors import DataError
from indistill.images import SkippedImage
from indistill.preprocess import PixelArray, Preprocessing

READ_AHEAD = 64  # images
BLOCK_BYTES = 64 * 2**20  # of pixels that are read before they are used
MEMORY_LIMIT_GB = 8.0


@dataclass(frozen=True)
class Pixels:
    """The readable images of a set, in memory.

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

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the SHA-256 of each image and of the labels, as hexadecimal digits."""
        return _fingerprint((_hash_image(image) for image in self.images), self.labels)


Found = list[bytes | str]  # of each image its hash, or the reason why it cannot be read


@dataclass(frozen=True)
class Share:
    """A process's part of a scan that several make together: every `count`-th image from the `rank`-th on.

    Attributes:
        rank: of this process, from 0.
        count: of the processes.
        exchange: takes what this process found, and returns what each of them did, by rank.
    """

    rank: int = 0
    count: int = 1
    exchange: Callable[[Found], list[Found]] = lambda own: [own]


@dataclass(frozen=True)
class StreamedPixels:
    """The readable images of a set too large for the memory: each is decoded when it is asked for.

    Attributes:
        name: the data spec.
        images: the set, with the images that cannot be read.
        preprocessing: gives the size.
        positions: (N,) int64, of the readable images in the set.
        labels: (N,) int64, -1 where there is none.
        classes: the class names.
        skipped: what could not be read; none of it is counted in N.
        fingerprint: of pixels and labels: the same as in memory.
        workers: threads that decode.
    """

    name: str
    images: ImageSet
    preprocessing: Preprocessing
    positions: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: tuple[SkippedImage, ...]
    fingerprint: str
    workers: int

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, number: int) -> PixelArray:
        """Returns an image (S, S, 3) uint8, counted without those that cannot be read.

        Raises:
            DataError: it could be read before, and cannot now.
        """
        position = int(self.positions[number])
        try:
            return self.preprocessing.resize(self.images.read(position))
        except DataError as error:
            raise DataError(
                f"data '{self.name}': {self.images.names[position]} changed during the training: {error}"
            ) from error


def open_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    on_progress: Callable[[int], None] = lambda _: None,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
    share: Share = Share(),
) -> Pixels | StreamedPixels:
    """Returns the images of a set for training: in memory if they fit, else streamed. All are read once in any case:
    in memory by each of several processes, else by one of them.
    """
    if measure_gb(images, preprocessing) <= memory_limit_gb:
        return load_pixels(images, preprocessing, on_progress, memory_limit_gb)
    return scan_pixels(images, preprocessing, on_progress, share=share)


def measure_gb(images: ImageSet, preprocessing: Preprocessing) -> float:
    """Returns the size of a set's pixels in memory, in GiB."""
    return len(images.names) * preprocessing.image_size**2 * 3 / 2**30


def load_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    on_progress: Callable[[int], None] = lambda _: None,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
) -> Pixels:
    """Returns all images of a set, resized, in their order.

    Args:
        images: the set.
        preprocessing: gives the size.
        on_progress: called with 1 for each image done.
        memory_limit_gb: GiB that the pixels may take.

    Raises:
        DataError: the pixels do not fit the memory limit, or no image can be read.
    """
    count, side = len(images.names), preprocessing.image_size
    needed = measure_gb(images, preprocessing)
    if needed > memory_limit_gb:
        raise DataError(
            f"data '{images.name}': {count} images of {side}x{side} need {needed:.1f} GiB, "
            f"more than the limit of {memory_limit_gb:g}; use fewer images or a smaller --image-size"
        )
    pixels = _load(images, preprocessing, range(count), on_progress)
    require_readable(images.name, len(pixels), pixels.skipped)
    return pixels


def read_blocks(images: ImageSet, preprocessing: Preprocessing) -> Iterator[Pixels]:
    """Yields a set in parts of 64 MiB of pixels, so that one of any size can be worked through.

    A part may have no readable image; see `require_readable`.
    """
    count, size = len(images.names), max(1, BLOCK_BYTES // (preprocessing.image_size**2 * 3))
    for start in range(0, count, size):
        yield _load(images, preprocessing, range(start, min(count, start + size)))


def scan_pixels(
    images: ImageSet,
    preprocessing: Preprocessing,
    on_progress: Callable[[int], None] = lambda _: None,
    workers: int | None = None,
    share: Share = Share(),
) -> StreamedPixels:
    """Returns the images of a set, to be decoded when they are asked for.

    Each is decoded once, by one of the processes: so that bad ones are left out from the first epoch on, in the same
    order as in memory, and the fingerprint is known.

    Args:
        images: the set.
        preprocessing: gives the size.
        on_progress: called with 1 for each image done.
        workers: threads that decode; default one for each core.
        share: of this process, where several call this together.

    Raises:
        DataError: no image can be read.
    """
    workers, total = workers or count_decoders(), len(images.names)
    own: Found = []
    for position, result in _read_all(images, preprocessing, range(share.rank, total, share.count), workers):
        own.append(result if isinstance(result, str) else _hash_image(result))
        on_progress(min(share.count, total - position))
    found: Found = [b""] * total
    for rank, part in enumerate(share.exchange(own)):
        found[rank :: share.count] = part
    reasons = {position: result for position, result in enumerate(found) if isinstance(result, str)}
    kept = np.array([p for p in range(total) if p not in reasons], dtype=np.int64)
    skipped = _list_skipped(images, reasons)
    require_readable(images.name, len(kept), skipped)
    labels = images.labels[kept]
    hashes = (result for result in found if isinstance(result, bytes))
    return StreamedPixels(
        images.name,
        images,
        preprocessing,
        kept,
        labels,
        images.classes,
        skipped,
        _fingerprint(hashes, labels),
        workers,
    )


def _hash_image(pixels: PixelArray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()


def _fingerprint(hashes: Iterable[bytes], labels: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for found in hashes:
        digest.update(found)
    digest.update(labels.tobytes())
    return digest.hexdigest()


def require_readable(name: str, readable: int, skipped: Sequence[SkippedImage]) -> None:
    """Raises DataError, with the first reason, if no image of a set can be read."""
    if not readable:
        first = skipped[0]
        raise DataError(f"data '{name}': none of {len(skipped)} images can be read; {first.name}: {first.reason}")


def _load(
    images: ImageSet,
    preprocessing: Preprocessing,
    positions: range,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Pixels:
    side, names = preprocessing.image_size, images.names
    array = np.empty((len(positions), side, side, 3), dtype=np.uint8)
    reasons: dict[int, str] = {}
    for position, result in _read_all(images, preprocessing, positions, count_decoders()):
        if isinstance(result, str):
            reasons[position] = result
        else:
            array[position - positions.start] = result
        on_progress(1)
    kept = np.array([p for p in positions if p not in reasons], dtype=np.int64)
    return Pixels(
        images.name,
        array if not reasons else array[kept - positions.start],
        images.labels[kept],
        tuple(names[p] for p in kept),
        images.classes,
        _list_skipped(images, reasons),
    )


def _read_all(
    images: ImageSet, preprocessing: Preprocessing, positions: range, workers: int
) -> Iterator[tuple[int, PixelArray | str]]:
    """Yields each position with its image (S, S, 3) uint8, or the reason why it cannot be read."""

    def read(position: int) -> tuple[int, PixelArray | str]:
        try:
            return position, preprocessing.resize(images.read(position))
        except DataError as error:
            return position, str(error)

    return map_ahead(read, positions, workers=workers, ahead=READ_AHEAD)


def _list_skipped(images: ImageSet, reasons: dict[int, str]) -> tuple[SkippedImage, ...]:
    names = images.names
    return tuple(SkippedImage(names[p], reasons[p]) for p in sorted(reasons))
