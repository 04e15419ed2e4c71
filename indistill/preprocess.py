"""Preprocessing: the one object that training, export, indexing and search share. Needs no torch."""

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.errors import DataError, InputError

MAX_PIXELS = 89_478_485  # Pillow's own limit for a decompression bomb
PixelArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input.

    The shorter side is resized (bilinear, antialiased as Pillow does) to `image_size / crop`, the longer one in
    proportion and rounded down, and the centre square of `image_size` pixels is taken: `resize` gives that as uint8.
    Then values are divided by 255, `mean` is subtracted and the rest divided by `std`, for each channel: `normalise`.
    An exported file has all of it in its graph; sizes are whole numbers, so that both compute the same.

    Attributes:
        image_size: side of the square input in pixels.
        crop: side of the square as a fraction of the resized shorter side, in (0, 1].
        mean: of the channels R, G, B, in [0, 1].
        std: of the channels R, G, B.
    """

    image_size: int = 32
    crop: float = 1.0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        channels = (*self.mean, *self.std)
        if (
            self.image_size < 1
            or not 0 < self.crop <= 1
            or self.image_size > self.crop * MAX_PIXELS**0.5
            or len(self.mean) != 3
            or len(self.std) != 3
            or not all(map(math.isfinite, channels))
            or min(self.std) <= 0
        ):
            raise InputError(
                f"preprocessing needs image_size >= 1, crop in (0, 1], at most {MAX_PIXELS:,} pixels, three "
                f"finite means and positive std: {self}"
            )

    @property
    def shortest_edge(self) -> int:
        """The shorter side of the resized image in pixels, before the crop."""
        return round(self.image_size / self.crop)

    def resize(self, image: Image.Image) -> PixelArray:
        """Returns the centre square of an RGB image, (image_size, image_size, 3) uint8.

        Rows first, then columns: which of the two Pillow begins with depends on its version and on the image, and each
        pass rounds. What the crop takes away is not resized twice.

        Raises:
            DataError: the image is so long and thin that resizing it would take more than the pixel limit.
        """
        width, height = image.size
        shorter = min(width, height)
        resized = (width * self.shortest_edge // shorter, height * self.shortest_edge // shorter)
        if resized[0] * resized[1] > MAX_PIXELS:
            raise DataError(
                f"{width}x{height} pixels, which is {resized[0]}x{resized[1]} at the network's size: too long"
            )
        left, top = (resized[0] - self.image_size) // 2, (resized[1] - self.image_size) // 2
        right, bottom = left + self.image_size, top + self.image_size
        if resized[0] != width:
            image = image.resize((resized[0], height), Image.Resampling.BILINEAR)
        if resized[0] != self.image_size:
            image = image.crop((left, 0, right, height))
        if resized[1] != height:
            image = image.resize((self.image_size, resized[1]), Image.Resampling.BILINEAR)
        if resized[1] != self.image_size:
            image = image.crop((0, top, self.image_size, bottom))
        return np.asarray(image)

    def normalise(self, pixels: PixelArray) -> NDArray[np.float32]:
        """Returns the network's input (B, 3, H, W) float32 for pixels (B, H, W, 3) uint8."""
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        scaled = (pixels.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data, for metadata and configuration."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "interpolation": "bilinear"}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocessing":
        """Returns what `to_dict` described, or raises ValueError, TypeError, KeyError, OverflowError or InputError."""
        size, crop = operator.index(data["image_size"]), float(data["crop"])
        return cls(size, crop, _read_channels(data["mean"]), _read_channels(data["std"]))


def _read_channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue
