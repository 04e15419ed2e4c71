"""Reading images that nobody has checked: bounded, upright, RGB, or one line that says why not. Needs no torch."""

import io
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from indistill.errors import DataError
from indistill.preprocess import MAX_PIXELS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})
ImageSource = Path | str | bytes | Image.Image


warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged metadata in images that are read
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be read, and why."""

    name: str
    reason: str


def decode_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns an upright RGB image.

    The EXIF orientation is applied, transparency is laid on white, and of an animation the first frame is taken. 16-bit
    values are scaled to 8 bits, and so are whole numbers and floats above 255.

    Args:
        source: a path, an encoded file as bytes, or an image.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        DataError: the source is missing, empty, no image, truncated or too large; the message is the reason alone.
    """
    try:
        if isinstance(source, Image.Image):
            return _convert_to_rgb(source)
        if isinstance(source, bytes):
            size_bytes, stream = len(source), io.BytesIO(source)
        else:
            size_bytes, stream = Path(source).stat().st_size, None
        if size_bytes == 0:
            raise DataError("empty file")
        with Image.open(stream if stream is not None else source) as image:  # type: ignore[arg-type]
            if image.width * image.height > max_pixels:
                raise DataError(f"{image.width}x{image.height} pixels, more than the limit of {max_pixels:,}")
            return _convert_to_rgb(image)
    except IsADirectoryError as error:
        raise DataError("is a folder, not an image") from error
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except UnidentifiedImageError as error:
        raise DataError("not an image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more pixels than the limit of {max_pixels:,}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"damaged image ({error})") from error


def list_images(folder: Path) -> list[Path]:
    """Returns the image files below a folder, by suffix in any case, sorted by path; hidden ones are passed over.

    Raises:
        DataError: the folder is missing, is a file, or holds no image.
    """
    if not folder.exists():
        raise DataError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, a folder of images is needed")
    paths = sorted(_walk(folder), key=lambda path: path.relative_to(folder).parts)
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{folder} holds no images ({kinds}), not in its sub-folders either")
    return paths


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        upright.load()
        return upright
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        values = np.asarray(upright, dtype=np.float32)
        highest = 65535.0 if upright.mode.startswith("I;16") or values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, highest) * (255 / highest)).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")
