"""Files that outlive a crash: written aside, synced, then moved into place. Needs no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """Yields a stream to `path` with `.partial` after its name, whose content is on the disk when the context ends."""
    with name_aside(path).open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def move_into_place(partial: Path, path: Path) -> None:
    """Renames a file in its folder, so that the new name outlives a crash too."""
    partial.replace(path)
    if os.name == "posix":  # other systems cannot open a folder
        sync_file(path.parent)


def sync_file(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def name_aside(path: Path) -> Path:
    """Returns where a file is written before it is complete."""
    return path.with_name(path.name + ".partial")
