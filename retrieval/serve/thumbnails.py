"""Small pictures of catalogued files."""

import io
from pathlib import Path

from PIL import Image

from indistill.errors import DataError
from indistill.images import decode_image

QUALITY = 85


def make_thumbnail(path: Path, size: int, max_pixels: int) -> bytes:
    """Returns a JPEG with no side longer than `size` pixels, without the file's metadata.

    Raises:
        DataError: the file is gone or no image; the message is the reason alone.
    """
    if not path.is_file():  # a pipe put in its place would never end
        raise DataError("no such file")
    image = decode_image(path, max_pixels, smallest=size)
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
