"""Training batches from pixels in memory or streamed, augmented a batch at a time, on the device that trains."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from indistill.data.ahead import map_ahead
from indistill.data.pixels import Pixels, StreamedPixels
from indistill.errors import DataError, InputError
from indistill.parallel.processes import count_processes, find_share
from indistill.preprocess import PixelArray, Preprocessing

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Draw:
    """What chance decided for a batch of B images, on the CPU.

    Attributes:
        chosen: (B,) int64, the images.
        row, column: (B,) int64, the offsets of the crops.
        flipped: (B,) bool.
        state: of the generator afterwards.
    """

    chosen: Tensor
    row: Tensor
    column: Tensor
    flipped: Tensor
    state: Tensor


class Batches:
    """Shuffled epochs of augmented, normalised images.

    Each image is flipped with probability one half and cropped at a random offset of its own, out of the image padded
    with black pixels. Streamed pixels give the same batches as those in memory, bit for bit.

    Of several processes that train together each has its share of a batch: all draw the same, and read their own.

    Args:
        pixels: the images.
        preprocessing: gives mean and std.
        batch_size: the last batch of an epoch may be smaller, but not a single image (batch norm needs two), and has
            an image for each process; else it is left out.
        flip: whether images are mirrored.
        crop_padding: pixels on each side; 0 for no cropping.
        seed: of the order and the augmentation.
        device: where the batches are made, and the pixels lie if they are in memory.
        positions: (N,) of the images that are trained on; all where it is not given.

    Raises:
        DataError: there are fewer than two images.
        InputError: a batch has fewer images than there are processes.
    """

    def __init__(
        self,
        pixels: Pixels | StreamedPixels,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        flip: bool,
        crop_padding: int,
        seed: int,
        device: torch.device,
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        self.positions = torch.arange(len(pixels)) if positions is None else torch.from_numpy(positions)
        self.chosen = self.positions[:0]
        self.batch_size, self.flip = batch_size, flip
        self.count, self.offsets = len(self.positions), 2 * crop_padding + 1
        if self.count < 2:
            raise DataError(f"data '{pixels.name}': training needs two images at least, {self.count} can be read")
        if min(batch_size, self.count) < count_processes():
            raise InputError(
                f"{count_processes()} processes need an image of each batch, and --batch-size is {batch_size} of "
                f"{self.count} images: give fewer processes, or larger batches"
            )
        self.generator = torch.Generator().manual_seed(seed)
        self.labels = torch.from_numpy(pixels.labels).to(device)
        self.crops: MemoryCrops | StreamedCrops
        if isinstance(pixels, StreamedPixels):
            self.crops = StreamedCrops(pixels, crop_padding, BATCHES_AHEAD * batch_size)
        else:
            self.crops = MemoryCrops(pixels, crop_padding, device)
        self.scale = 1 / (255 * torch.tensor(preprocessing.std, device=device))
        self.shift = torch.tensor(preprocessing.mean, device=device) / torch.tensor(preprocessing.std, device=device)

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest >= max(2, count_processes()))

    def count_images(self, number: int) -> int:
        """Returns the images of a batch of the epoch, counted from 0, those of all processes."""
        return min(self.batch_size, self.count - number * self.batch_size)

    def draw_epoch(self, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, S, S) float32, channels last in memory, and labels (B,): this process's share.

        `generator` stands after each batch where that batch left it, though later ones may be drawn already, and
        `chosen` (B,) are the positions of its images.

        Args:
            start_batch: this many batches are drawn and passed over without being read, so that those that follow are
                the same as in a whole epoch.
        """
        ahead = self.generator.clone_state()
        draws = itertools.islice(self._draw_batches(ahead), start_batch, None)
        for draw, images in self.crops.read(draws):
            self.generator.set_state(draw.state)
            self.chosen = draw.chosen
            yield self._make_batch(draw, images)
        self.generator.set_state(ahead.get_state())

    def read_plain(self, positions: Tensor) -> Iterator[Tensor]:
        """Yields images (B, 3, S, S) as `draw_epoch` does, those of some positions, in their order and as they are:
        nothing is drawn.
        """
        padding = self.offsets // 2

        def list_draws() -> Iterator[Draw]:
            for start in range(0, len(positions), self.batch_size):
                chosen = positions[start : start + self.batch_size]
                middle = torch.full_like(chosen, padding)
                yield Draw(chosen, middle, middle, torch.zeros(len(chosen), dtype=torch.bool), torch.empty(0))

        for draw, images in self.crops.read(list_draws()):
            yield self._make_batch(draw, images)[0]

    def _draw_batches(self, generator: torch.Generator) -> Iterator[Draw]:
        order = torch.randperm(self.count, generator=generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = self.positions[order[start : start + self.batch_size]]
            row, column = torch.randint(self.offsets, (2, len(chosen)), generator=generator)
            flipped = torch.rand(len(chosen), generator=generator) < 0.5
            own = find_share(len(chosen))
            yield Draw(chosen[own], row[own], column[own], flipped[own], generator.get_state())

    def _make_batch(self, draw: Draw, images: Tensor) -> tuple[Tensor, Tensor]:
        device = self.labels.device
        images = images.to(device)  # (B, S, S, 3) uint8
        if self.flip:
            flipped = draw.flipped.to(device)
            images[flipped] = images[flipped].flip(2)
        normalised = images.float().mul_(self.scale).sub_(self.shift)
        return normalised.permute(0, 3, 1, 2), self.labels[draw.chosen.to(device)]


class MemoryCrops:
    """Crops of images in memory, on the device."""

    def __init__(self, pixels: Pixels, padding: int, device: torch.device) -> None:
        images = torch.from_numpy(pixels.images).to(device)
        count, side = images.shape[:2]
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        # A view of every crop of every image: (N, offsets, offsets, S, S, 3), nothing is copied.
        image, row, column, channel = padded.stride()
        offsets = 2 * padding + 1
        self.views = padded.as_strided(
            (count, offsets, offsets, side, side, 3), (image, row, column, row, column, channel)
        )

    def read(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Yields each draw with its images (B, S, S, 3) uint8."""
        device = self.views.device
        for draw in draws:
            yield draw, self.views[draw.chosen.to(device), draw.row.to(device), draw.column.to(device)]


class StreamedCrops:
    """Crops of images that threads decode, `ahead` images before they are asked for; on the CPU."""

    def __init__(self, pixels: StreamedPixels, padding: int, ahead: int) -> None:
        self.pixels, self.padding, self.ahead = pixels, padding, ahead

    def read(self, draws: Iterable[Draw]) -> Iterator[tuple[Draw, Tensor]]:
        """Yields each draw with its images (B, S, S, 3) uint8."""
        draws, upcoming = itertools.tee(draws)
        items = (
            item
            for draw in upcoming
            for item in zip(draw.chosen.tolist(), draw.row.tolist(), draw.column.tolist(), strict=True)
        )
        crops = map_ahead(self._crop, items, workers=self.pixels.workers, ahead=self.ahead)
        for draw in draws:
            yield draw, torch.from_numpy(np.stack([next(crops) for _ in range(len(draw.chosen))]))

    def _crop(self, item: tuple[int, int, int]) -> PixelArray:
        number, row, column = item
        image, padding = self.pixels.read(number), (self.padding, self.padding)
        return np.pad(image, (padding, padding, (0, 0)))[row : row + len(image), column : column + len(image)]
