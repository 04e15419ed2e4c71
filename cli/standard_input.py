"""Paths that commands take from standard input."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from indistill.errors import InputError

if TYPE_CHECKING:
    from indistill.data.sets import FolderSet

NullInputOption = Annotated[
    bool, typer.Option("--null-input", "-0", help="Paths from standard input end by NUL, as find -print0 ends them.")
]


def expand_paths(given: Sequence[str], *, null: bool) -> list[str]:
    """Returns paths, those of standard input in the place of `-`; `--null-input` alone means them too.

    Raises:
        InputError: standard input holds no path.
    """
    if "-" not in given and not null:
        return list(given)
    separator = b"\0" if null else b"\n"
    read = [os.fsdecode(name) for name in sys.stdin.buffer.read().split(separator) if name]
    if not read:
        raise InputError("standard input holds no path")
    place = given.index("-") if "-" in given else len(given)
    return [*given[:place], *read, *given[place + 1 :]]


def open_listed(images: str | None, *, null: bool) -> "FolderSet | None":
    """Returns the images whose paths standard input holds, None where a command's images are not `-`.

    Raises:
        InputError: standard input holds no path, or `--null-input` stands beside other images.
    """
    from indistill.data.sets import open_files

    if null and images not in (None, "-"):
        raise InputError(f"--null-input is for paths from standard input: give - in place of {images}")
    return open_files(expand_paths(["-"], null=null), "-") if null or images == "-" else None
