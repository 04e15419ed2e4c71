"""Reading images that nobody has checked: bounded, upright, RGB, or one line that says why not. Needs no torch."""

import errno
import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from indistill.errors import DataError
from indistill.preprocess import MAX_PIXELS, PixelArray, Preprocessing

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif"})
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's other readers are never run
MAX_FILE_BYTES = 6 * MAX_PIXELS  # the largest image without compression, 16 bits in three channels
DRAFT_FACTOR = 4  # the shorter side of a JPEG file's draft is so many times that of the resized image, or more
ImageSource = Path | str | bytes | Image.Image

_MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|BM....\0\0\0\0....[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6]\s+[#\d]",
    re.DOTALL,
)
_MAGIC_BYTES = 18
# What Pillow's readers raise at damaged files; these errors have no common class.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # of damaged metadata in images that are read
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be read, and why."""

    name: str
    reason: str


def decode_image(source: ImageSource, max_pixels: int = MAX_PIXELS, *, smallest: int | None = None) -> Image.Image:
    """Returns an upright RGB image.

    The EXIF orientation is applied where it can be read, transparency is laid on white, and of an animation the first
    frame is taken. 16-bit values are scaled to 8 bits, and so are whole numbers and floats above 255.

    Args:
        source: a path, an encoded file as bytes, or an image.
        max_pixels: larger images are refused before they are decoded.
        smallest: a JPEG file may be decoded at a half, a quarter or an eighth of its size, which is faster, where both
            sides can be divided by that and neither becomes shorter than this.

    Raises:
        DataError: the source is missing, empty, no image, truncated or too large; the message is the reason alone.
    """
    try:
        if isinstance(source, Image.Image):
            return _convert_to_rgb(source)
        if (len(source) if isinstance(source, bytes) else measure_file(Path(source)).st_size) == 0:
            raise DataError("empty file")
        # Of a path Pillow would map some files, and the process would end where one is cut off meanwhile.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream,
            Image.open(stream, formats=FORMATS) as image,
        ):
            if image.width * image.height > max_pixels:
                raise DataError(f"{image.width}x{image.height} pixels, more than the limit of {max_pixels:,}")
            if smallest is not None:
                _draft(image, smallest)
            return _convert_to_rgb(image)
    except IsADirectoryError as error:
        raise DataError("is a folder, not an image") from error
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except UnidentifiedImageError as error:
        raise DataError("not an image that Pillow can read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"more pixels than the limit of {max_pixels:,}") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.EINVAL:  # its head leads to where no file reaches
            raise DataError("not an image that Pillow can read") from error
        raise DataError(f"damaged image ({' '.join(str(error).split())})") from error


def read_pixels(source: ImageSource, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> PixelArray:
    """Returns an image as a model takes it, (S, S, 3) uint8: for galleries and queries alike.

    Large JPEG files are decoded at a fraction of their size, as long as the shorter side keeps `DRAFT_FACTOR` times the
    pixels that it is resized to. Measured on 227 photographs at a half, resized from their exact extent, by the cosine
    with the full decode in a network trained at 32 pixels: 0.9998 on average and 0.9984 at least, as rounding has it
    (one level more or less in 16% of the values: 0.9998 and 0.9973). With a factor of 2 it was 0.9986 and 0.985. A
    ResNet-18 with random weights has 0.9997 at least with either. Training and the gates of export decode in full.

    Raises:
        DataError: the image cannot be read; the message is the reason alone.
    """
    smallest = DRAFT_FACTOR * preprocessing.shortest_edge
    return preprocessing.resize(decode_image(source, max_pixels, smallest=smallest))


def count_pixels(content: bytes) -> int:
    """Returns the width times the height of an encoded image, from its head alone; 0 where that cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *_DAMAGE):
        return 0


def measure_file(path: Path) -> os.stat_result:
    """Returns what is known of a file, once it is clear that it can be read whole.

    Raises:
        DataError: it is a folder, a pipe or a device, or has more bytes than any image; the message is the reason.
        OSError: there is no such file, or it cannot be reached.
    """
    try:
        known = path.stat()
    except ValueError as error:
        raise DataError("no file can have this name") from error
    if stat.S_ISDIR(known.st_mode):
        raise DataError("is a folder, not an image")
    if not stat.S_ISREG(known.st_mode):
        raise DataError("is a pipe or a device, not an image")  # reading it might never end
    if known.st_size > MAX_FILE_BYTES:
        raise DataError(f"{known.st_size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
    return known


def list_images(folder: Path) -> list[Path]:
    """Returns the image files below a folder, sorted by path; hidden ones are passed over.

    A file is an image by its suffix, in any case; one with another suffix or none is an image by its first bytes.
    Links to files are followed, links to folders are not, so that no loop has to be found and no image comes twice.

    Raises:
        DataError: the folder is missing, is a file, cannot be read, or holds no image.
    """
    if not folder.exists():
        raise DataError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file, a folder of images is needed")
    names = sorted(_walk(folder), key=lambda name: name.split("/"))
    if not names:
        kinds = ", ".join(sorted(SUFFIXES))
        raise DataError(f"{folder} holds no images ({kinds}), not in its sub-folders either")
    return [folder / name for name in names]


def _walk(root: Path) -> Iterator[str]:
    """Yields the names of images, relative to the root."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:  # images that were there before must not seem to be gone
            raise DataError(f"the folder {root / prefix} cannot be read: {error.strerror}") from error
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{prefix}{entry.name}/")
            elif _is_image(entry):
                yield prefix + entry.name


def _is_image(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink() and not Path(entry.path).exists():
        return Path(entry.name).suffix.lower() in SUFFIXES  # named among the skipped ones
    if not entry.is_file():
        return False
    if Path(entry.name).suffix.lower() in SUFFIXES:
        return True
    try:
        with Path(entry.path).open("rb") as stream:
            return _MAGIC.match(stream.read(_MAGIC_BYTES)) is not None
    except OSError:  # what cannot be read and has no image's name is none
        return False


def _draft(image: Image.Image, smallest: int) -> None:
    """Has a JPEG file decoded at a fraction of its size, which does nothing to other images.

    Only where it divides both sides: elsewhere the last row or column stands for less than a whole pixel, and the
    image would be stretched by it, which costs more than all else (a cosine of 0.75).
    """
    for scale in (8, 4, 2):
        width, height = image.width // scale, image.height // scale
        if image.width % scale == 0 and image.height % scale == 0 and min(width, height) >= smallest:
            image.draft(None, (width, height))
            return


def _convert_to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    turn = _TURNS.get(_read_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    key = upright.info.get("transparency")
    if upright.mode == "RGB" and key is None:
        return upright
    if upright.mode.startswith("I;16"):
        return _scale_16_bits(upright)
    if upright.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(upright, dtype=np.float32))
        highest = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((values.clip(0, highest) * (255 / highest)).astype(np.uint8)).convert("RGB")
    if upright.has_transparency_data:
        if upright.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            upright.info["transparency"] = tuple(value >> 8 for value in key)  # 16 bits, of which Pillow keeps 8
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return upright.convert("RGB")


def _read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, or 1, upright, where there is none or the metadata is damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except _DAMAGE:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _scale_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    scaled = (values // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        scaled[values == key] = 255
    return Image.fromarray(scaled).convert("RGB")
