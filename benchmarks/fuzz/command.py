"""Runs a command line in this process, and says what is not as it must be."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence

from indistill.cli.main import main

CODES = (0, 1, 2)


class Reached(SystemExit):
    """Raised where a command has read all its input and hours of work would begin: as if that were done."""

    def __init__(self) -> None:
        super().__init__(0)


def reach(*given: object, **options: object) -> None:
    """Stands in the place of hours of work."""
    raise Reached


def run_command(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Returns the exit code of a command and what it printed."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with _replace_streams(arguments, stdout, stderr):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    texts = []
    for stream in (stdout, stderr):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return code, texts[0], texts[1]


def check_command(arguments: Sequence[str]) -> int:
    """Returns the exit code of a command. Raises AssertionError where it did not end well or with one clear line."""
    code, _, err = run_command(arguments)
    shown = f"{[argument[:200] for argument in arguments]} ended with {code}: {err[-3000:]}"
    assert code in CODES, shown
    assert "Traceback" not in err, shown
    if "internal error" in err:
        run_command([*arguments, "--debug"])  # raises it, with its place
        raise AssertionError(shown)
    if code:
        last = err.rstrip("\n").rsplit("\n", 1)[-1]
        usage = code == 2 and "Usage: " in err
        found_damage = code == 2 and list(arguments[:2]) == ["index", "verify"]  # it says where, a line each
        assert usage or found_damage or re.match(r"indistill: error: \S", last), shown
    steering = re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", err)
    assert steering is None, f"{steering[0]!r} on standard error: {shown}" if steering else ""
    return code


@contextlib.contextmanager
def _replace_streams(arguments: Sequence[str], stdout: io.TextIOWrapper, stderr: io.TextIOWrapper) -> Iterator[None]:
    before = sys.argv, sys.stdout, sys.stderr, sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:  # noqa: PTH123
        sys.argv, sys.stdout, sys.stderr, sys.stdin = ["indistill", *arguments], stdout, stderr, nothing
        try:
            yield
        finally:
            sys.argv, sys.stdout, sys.stderr, sys.stdin = before
