"""Training batches from pixels in memory, augmented a batch at a time, on the device that trains."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from indistill.data.pixels import Pixels
from indistill.errors import DataError
from indistill.preprocess import Preprocessing


class Batches:
    """Shuffled epochs of augmented, normalised images.

    Each image is flipped with probability one half and cropped at a random offset of its own, out of the image padded
    with black pixels.

    Args:
        pixels: the images.
        preprocessing: gives mean and std.
        batch_size: the last batch of an epoch may be smaller, but not a single image (batch norm needs two).
        flip: whether images are mirrored.
        crop_padding: pixels on each side; 0 for no cropping.
        seed: of the order and the augmentation.
        device: where the pixels lie and the batches are made.

    Raises:
        DataError: there are fewer than two images.
    """

    def __init__(
        self,
        pixels: Pixels,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        flip: bool,
        crop_padding: int,
        seed: int,
        device: torch.device,
    ) -> None:
        if len(pixels) < 2:
            raise DataError(f"data '{pixels.name}': training needs two images at least, {len(pixels)} can be read")
        self.batch_size, self.flip = batch_size, flip
        self.count, self.offsets = len(pixels), 2 * crop_padding + 1
        self.generator = torch.Generator().manual_seed(seed)
        self.labels = torch.from_numpy(pixels.labels).to(device)
        images = torch.from_numpy(pixels.images).to(device)
        side = preprocessing.image_size
        padded = F.pad(images, (0, 0, crop_padding, crop_padding, crop_padding, crop_padding))
        # A view of every crop of every image: (N, offsets, offsets, S, S, 3), nothing is copied.
        image, row, column, channel = padded.stride()
        self.crops = padded.as_strided(
            (self.count, self.offsets, self.offsets, side, side, 3), (image, row, column, row, column, channel)
        )
        self.scale = 1 / (255 * torch.tensor(preprocessing.std, device=device))
        self.shift = torch.tensor(preprocessing.mean, device=device) / torch.tensor(preprocessing.std, device=device)

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 1)

    def draw_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, S, S) float32, channels last in memory, and labels (B,)."""
        order = torch.randperm(self.count, generator=self.generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self._make_batch(order[start : start + self.batch_size])

    def _make_batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        device = self.labels.device
        row, column = torch.randint(self.offsets, (2, len(chosen)), generator=self.generator).to(device)
        flipped = torch.rand(len(chosen), generator=self.generator).to(device) < 0.5
        chosen = chosen.to(device)
        images = self.crops[chosen, row, column]  # (B, S, S, 3) uint8
        if self.flip:
            images[flipped] = images[flipped].flip(2)
        normalised = images.float().mul_(self.scale).sub_(self.shift)
        return normalised.permute(0, 3, 1, 2), self.labels[chosen]
