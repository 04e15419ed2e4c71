"""Writes the images, good and bad, that the tests of the command line read."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = {"eight": 8, "four": 4, "one": 1, "seven": 7, "zéro": 0}


def write_digits(folder: Path, first: int, count: int, *, classes: bool = True) -> Path:
    """Writes digits, `count` of each class from the `first` on, as PNG and JPEG by turns."""
    digits = load_digits()
    for name, digit in CLASSES.items():
        place = folder / name if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(digits.images[digits.target == digit][first : first + count]):
            grey = np.kron(pixels * (255 / 16), np.ones((4, 4))).round().astype(np.uint8)
            image = Image.fromarray(grey).convert("RGB")
            if number % 2:
                image.save(place / f"{name} {number:02d}.jpg", quality=92)
            else:
                image.save(place / f"{name} {number:02d}.png")
    return folder


def list_files(folder: Path) -> list[Path]:
    """Returns the files below a folder, sorted by path."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.parts)


def write_blank_png(path: Path, side: int) -> Path:
    """Writes a black square of 1-bit pixels, a row at a time, so that a huge one costs neither memory nor time."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def write_huge(path: Path) -> Path:
    """Writes an image of 400 million pixels."""
    return write_blank_png(path, 20_000)


def write_large(path: Path) -> Path:
    """Writes an image of 100 million pixels, for which Pillow by itself would only warn."""
    return write_blank_png(path, 10_000)


def write_truncated_jpeg(path: Path) -> Path:
    """Writes the first half of a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def write_truncated_tiff(path: Path) -> Path:
    """Writes a TIFF without its last bytes, for which Pillow warns before it fails."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="TIFF", compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-60])
    return path


def write_empty(path: Path) -> Path:
    """Writes a file of no bytes."""
    path.write_bytes(b"")
    return path


def write_note(path: Path) -> Path:
    """Writes text."""
    path.write_text("this is a note\n", encoding="utf-8")
    return path


# Name, writer, and the reason that is given; the names come first, in between and last among those of the digits.
BAD_IMAGES: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "a truncated JPEG": ("eight/a truncated.jpg", write_truncated_jpeg, "damaged image"),
    "an empty file": ("four/four 02 empty.png", write_empty, "empty file"),
    "a text": ("four/four 04 text.jpg", write_note, "not an image that Pillow can read"),
    "a huge image": ("one/huge.png", write_huge, "more pixels than the limit of 89,478,485"),
    "a large image": ("zéro/zzz large.png", write_large, "more pixels than the limit of 89,478,485"),
}
