"""Runs the command line, in this process or in one of its own, and looks at what it left behind."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from indistill.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
MAIN = "from indistill.cli.main import main; main()"
STOP = """import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a job in the background
def stop(*given, **options): os.kill(os.getpid(), signal.SIGINT)
"""


class Result(NamedTuple):
    """What a call ended with."""

    code: int
    out: str
    err: str


def run_cli(*arguments: object) -> Result:
    """Runs a command in this process."""
    with _open_text() as stdout, _open_text() as stderr:
        with pytest.MonkeyPatch.context() as patch, _capture(stdout, stderr):
            patch.setattr(sys, "argv", ["indistill", *map(str, arguments)])
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
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


def run_process(*arguments: object, code: str = MAIN) -> Result:
    """Runs a command, or other Python code, in a process of its own that can import this checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        env=make_environment(),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def run_with_input(given: bytes, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in a process of its own, with bytes as its standard input."""
    return subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        input=given,
        capture_output=True,
        env=make_environment(),
        timeout=120,
        check=False,
    )


def make_environment() -> dict[str, str]:
    """Returns the environment of a child process."""
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}


def fill(line: str, places: dict[str, Path]) -> list[str]:
    """Returns the words of a command line, with `{name}` replaced by places."""
    return [word.format(**places) for word in line.split()]


def assert_refused(result: Result, *fragments: str) -> None:
    """Fails unless a call was refused as bad input: exit code 2, and one clear line."""
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("indistill: error: "), result.err
    assert result.code == 2, result.err
    assert result.out == "", result.out
    for fragment in fragments:
        assert fragment in lines[0], f"{fragment!r} is not in {lines[0]!r}"


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Returns the contents of all files below a folder, hidden ones too, and None for each folder, by relative path;
    but for what Python keeps of modules that it has compiled.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if "__pycache__" not in path.parts
    }


def _open_text() -> TextIO:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


@contextmanager
def _capture(stdout: TextIO, stderr: TextIO) -> Iterator[None]:
    """Sends both descriptors to files: what C++ libraries print counts too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    try:
        yield
    finally:
        stdout.flush()
        stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
