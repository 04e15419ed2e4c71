"""Images: bytes of every format changed, chunks and sizes of headers rewritten, enormous sizes claimed."""

import random
import zlib
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.fuzz.damage import ODD_NUMBERS, damage
from benchmarks.mutated_images import make_originals
from indistill.errors import DataError
from indistill.images import decode_image, read_pixels
from indistill.preprocess import MAX_PIXELS, Preprocessing

PREPROCESSING = Preprocessing(32)
IMAGES = 20  # of an attempt


def attempt(random: random.Random, folder: Path) -> None:
    """Reads changed images from their paths and from their bytes, which must end alike."""
    for number in range(IMAGES):
        suffix, content = random.choice(_make_originals())
        content = _change(content, random)
        path = folder / f"{number}.{suffix}"
        path.write_bytes(content)
        from_path, from_bytes = _read(path), _read(content)
        assert type(from_path) is type(from_bytes), (from_path, from_bytes)
        if isinstance(from_path, str):
            assert from_path == from_bytes
            assert from_path.strip()
            assert "\n" not in from_path
        else:
            assert np.array_equal(from_path, from_bytes)
        path.unlink()


@cache
def _make_originals() -> list[tuple[str, bytes]]:
    return make_originals()


def _read(source: Path | bytes) -> np.ndarray | str:
    try:
        image = decode_image(source)
        assert image.mode == "RGB"
        assert image.width * image.height <= MAX_PIXELS
        pixels = read_pixels(source, PREPROCESSING)
        assert pixels.shape == (32, 32, 3)
        return pixels
    except DataError as error:
        return str(error)


def _change(content: bytes, generator: random.Random) -> bytes:
    if generator.random() < 0.6:
        return damage(content, generator)
    if content.startswith(b"\x89PNG"):
        return _change_png(content, generator)
    return _claim_size(content, generator)


def _change_png(content: bytes, generator: random.Random) -> bytes:
    """Returns a PNG file whose chunks are changed, doubled, moved or gone, with checksums that fit."""
    chunks, position = [], 8
    while position < len(content):
        size = int.from_bytes(content[position : position + 4], "big")
        chunks.append([content[position + 4 : position + 8], content[position + 8 : position + 8 + size]])
        position += 12 + size
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(chunks))
        match generator.randrange(6):
            case 0:
                chunks.insert(place, list(generator.choice(chunks)))
            case 1 if len(chunks) > 1:
                del chunks[place]
            case 2:
                kind = generator.choice(
                    (b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL", b"PLTE")
                )
                packed = zlib.compress(bytes(generator.choice((10, 10_000, 50_000_000))))
                body = generator.choice((b"", b"x\0\0" + packed, b"x\0\1\0\0\0" + packed, generator.randbytes(26)))
                chunks.insert(place, [kind, body])
            case 3:
                width, height = (generator.choice(ODD_NUMBERS) % 2**32 for _ in range(2))
                body = width.to_bytes(4, "big") + height.to_bytes(4, "big") + chunks[0][1][8:]
                chunks[0] = [chunks[0][0], body]
            case _:
                chunks[place] = [chunks[place][0], damage(chunks[place][1], generator)]
    made = [
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    ]
    return content[:8] + b"".join(made)


def _claim_size(content: bytes, generator: random.Random) -> bytes:
    """Returns a file with other numbers where its format has the sizes, or anywhere in the first bytes."""
    places = {
        b"BM": (18, 22, 10, 2),
        b"GI": (6, 8),
        b"RI": (4, 24, 27, 26, 28),
        b"II": (4,),
        b"P6": (3, 6),
        b"P5": (3, 6),
    }
    changed = bytearray(content)
    for _ in range(generator.randint(1, 3)):
        known = places.get(content[:2], ())
        place = (
            generator.choice(known)
            if known and generator.random() < 0.7
            else generator.randrange(min(len(content), 600))
        )
        number = generator.choice(ODD_NUMBERS) % 2**32
        size = generator.choice((2, 4))
        if content[:1] == b"P":
            changed[place : place + 2] = str(number).encode()
        else:
            changed[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed)
