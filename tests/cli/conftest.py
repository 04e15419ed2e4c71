"""Runs the command line, and shares one trained, exported and indexed student of scikit-learn's digits."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from indistill.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
CLASSES = ("eight", "four", "one", "seven", "zéro")
DIGITS = (8, 4, 1, 7, 0)  # of the classes above


class Result(NamedTuple):
    """What a call of the command line ended with."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Workspace:
    """Where everything that the tests share lies; no test changes it.

    Attributes:
        root: the folder of all of it.
        teacher: a run of `train`.
        run: a run of `compress`, with its student.onnx.
        model: the student.onnx.
        gallery: a folder of classes, PNG and JPEG.
        queries: other images of the same classes.
        loose: images without classes.
        index: of the gallery, by the model.
    """

    root: Path
    teacher: Path
    run: Path
    model: Path
    gallery: Path
    queries: Path
    loose: Path
    index: Path


@contextmanager
def capture(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Sends both streams to files, by their descriptors: what C++ libraries print counts too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    try:
        with mock.patch.multiple(sys, stdout=stdout, stderr=stderr):
            yield
    finally:
        stdout.flush()
        stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def run_cli(*arguments: object) -> Result:
    """Runs a command in this process."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as stdout,
        tempfile.TemporaryFile("w+", encoding="utf-8") as stderr,
    ):
        with mock.patch.object(sys, "argv", ["indistill", *map(str, arguments)]), capture(stdout, stderr):
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        stdout.seek(0)
        stderr.seek(0)
        return Result(code, stdout.read(), stderr.read())


def succeed(*arguments: object) -> Result:
    """Runs a command in this process that must end well."""
    result = run_cli(*arguments)
    assert result.code == 0, result.err
    return result


def run_python(code: str, *arguments: object, cwd: Path | None = None) -> Result:
    """Runs a piece of Python, with arguments, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        cwd=cwd,
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Returns the contents of all files below a folder, hidden ones too, and None for each folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_digits(folder: Path, first: int, count: int, *, classes: bool = True) -> Path:
    """Writes digits, `count` of each class from the `first` on, as PNG and JPEG by turns."""
    digits = load_digits()
    for name, digit in zip(CLASSES, DIGITS, strict=True):
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


def write_blank_png(path: Path, side: int) -> Path:
    """Writes a black square of 1-bit pixels, a row at a time, so that a huge one costs neither memory nor time."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def write_truncated_jpeg(path: Path) -> Path:
    """Writes the first half of a JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def write_empty(path: Path) -> Path:
    """Writes a file of no bytes."""
    path.write_bytes(b"")
    return path


def write_note(path: Path) -> Path:
    """Writes text."""
    path.write_text("this is a note\n", encoding="utf-8")
    return path


def write_huge(path: Path) -> Path:
    """Writes an image of 400 million pixels."""
    return write_blank_png(path, 20_000)


def write_large(path: Path) -> Path:
    """Writes an image of 100 million pixels, for which Pillow alone would only warn."""
    return write_blank_png(path, 10_000)


BAD_IMAGES: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "truncated JPEG": ("truncated.jpg", write_truncated_jpeg, "damaged image"),
    "empty file": ("empty.png", write_empty, "empty file"),
    "text": ("note.jpg", write_note, "not an image that Pillow can read"),
    "huge image": ("huge.png", write_huge, "more pixels than the limit"),
    "large image": ("large.png", write_large, "more pixels than the limit"),
}


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """Lets child processes import this checkout, and keeps colours and the width of a terminal out of the output."""
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}):
        for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"):
            os.environ.pop(name, None)
        yield


@pytest.fixture(scope="session")
def bad_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns the file of each of `BAD_IMAGES`, written once."""
    folder = tmp_path_factory.mktemp("bad")
    return {kind: write(folder / name) for kind, (name, write, _) in BAD_IMAGES.items()}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Returns a teacher, a student, its ONNX file, a gallery and an index of it."""
    root = tmp_path_factory.mktemp("workspace")
    made = Workspace(
        root=root,
        teacher=root / "teacher",
        run=root / "run",
        model=root / "run" / "student.onnx",
        gallery=write_digits(root / "gallery", 0, 8),
        queries=write_digits(root / "queries", 8, 4),
        loose=write_digits(root / "loose", 12, 4, classes=False),
        index=root / "index",
    )
    options = ("--data", "digits/train", "--recipe", "digits", "--epochs", 5)
    succeed("train", "--model", "paper:cnn-a", *options, "--out", made.teacher)
    succeed("compress", "--teacher", made.teacher, "--student", "paper:cnn-s", *options, "--out", made.run)
    succeed("export", made.run, "--onnx")
    succeed("index", "build", made.gallery, "--model", made.model, "--out", made.index)
    return made


@pytest.fixture(scope="session")
def gallery_paths(workspace: Workspace) -> list[str]:
    """Returns the paths of the gallery's images, relative to it, in the order of their ids."""
    paths = [path.relative_to(workspace.gallery) for path in workspace.gallery.rglob("*") if path.is_file()]
    return [path.as_posix() for path in sorted(paths, key=lambda path: path.parts)]


@pytest.fixture
def copied_index(workspace: Workspace, tmp_path: Path) -> Path:
    """Returns a copy of the index that a test may spoil."""
    return Path(shutil.copytree(workspace.index, tmp_path / "index"))
