"""Galleries: folders with links in circles and to devices, pipes, sockets, odd names, and rights that are missing."""

import os
import random
import shutil
import socket
from pathlib import Path

from benchmarks.fuzz.damage import require_line
from benchmarks.fuzz.originals import provide
from indistill.data.specs import open_images
from indistill.errors import DataError

NAMES = [
    b"a.png",
    b"\xff.png",
    b"a\nb.png",
    b"\x1b[31m.png",
    b"<img onerror=x>.png",
    b"=1+1.jpg",
    b"-o.png",
    b"a",
    b"CON.png",
    b".hidden.png",
]
TARGETS = (
    b"/etc/passwd",
    b"/dev/zero",
    b"/dev/stdin",
    b"..",
    b".",
    b"/proc/self/mem",
    b"/nothing",
    b"a.png",
    b"\xff.png",
)


def prepare() -> None:
    """Makes the images that are copied."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Lists and reads a folder of such things; what is listed lies below it, each once."""
    root = folder / "gallery"
    root.mkdir()
    folders = [os.fsencode(root)]
    pictures = sorted(provide("gallery").glob("*/*.png"))
    for _ in range(random.randint(1, 25)):
        path = os.path.join(random.choice(folders), random.choice(NAMES))  # noqa: PTH118 - bytes
        if not os.path.lexists(path):
            _make(path, folders, random, pictures)
    images = open_images(str(root))
    assert len(set(images.names)) == len(images.names)
    for position, name in enumerate(images.names):
        assert ".." not in name.split("/")
        try:
            images.read(position)
        except DataError as error:
            require_line(error)


def _make(path: bytes, folders: list[bytes], generator: random.Random, pictures: list[Path]) -> None:
    match generator.randrange(9):
        case 0 | 1:
            os.mkdir(path)  # noqa: PTH102 - bytes
            folders.append(path)
        case 2:
            os.symlink(generator.choice((*TARGETS, *folders)), path)  # noqa: PTH211 - bytes
        case 3:
            os.mkfifo(path)
        case 4 if len(path) < 100:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path)
        case 5:
            with open(path, "wb") as stream:  # noqa: PTH123 - bytes
                stream.truncate(generator.choice((0, 2**20, 2**42)))
        case _:
            shutil.copyfile(generator.choice(pictures), path)
