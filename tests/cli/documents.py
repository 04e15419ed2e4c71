"""Reads the blocks of code in the README and the pages of docs/, and runs them."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from indistill.cli.main import COMMANDS, build_app
from indistill.errors import IndistillError
from tests.cli.calls import REPOSITORY, Result, make_environment, run_cli

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SHELL, PYTHON = ("bash",), ("python",)
NOT_CODE = ("text", "csv", "json", "yaml", "nginx")
FENCE = re.compile(r'^( *)```(\S*)(?: title="(.+)")?\s*$')
REASON = re.compile(r"<!-- not run: (.+) -->")
SYNTAX = ("|", ">", "&&", ";")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: its path in the repository.
        line: where it begins.
        language: the word behind its fence.
        code: what is in it.
        reason: why it is not run, None where it is.
        title: the file that it is, None where it is none.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None
    title: str | None

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def lines(self) -> list[str]:
        """The commands, each on one line."""
        return [line for line in self.code.replace("\\\n", " ").splitlines() if line.strip()]


def read_blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page in their order."""
    blocks: list[Block] = []
    begun: tuple[int, str, str, str | None, str | None] | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    code: list[str] = []
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if begun is not None and fence is not None and not fence[2]:
            start, indent, language, reason, title = begun
            text = "\n".join(row.removeprefix(indent) for row in code) + "\n"
            blocks.append(Block(str(page.relative_to(REPOSITORY)), start, language, text, reason, title))
            begun, code = None, []
        elif begun is not None:
            code.append(line)
        elif fence is not None:
            before = next((row for row in reversed(lines[: number - 1]) if row.strip()), "")
            marked = REASON.search(before)
            begun = number, fence[1], fence[2], None if marked is None else marked[1], fence[3]
    assert begun is None, f"{page}: a block without an end"
    return blocks


def find_calls(line: str) -> Iterator[list[str]]:
    """Yields the arguments of each call of indistill in a line of shell."""
    words = shlex.split(line, comments=True)
    for place, word in enumerate(words):
        if word in ("indistill", "indistill.cli.main") and words[place - 1] not in ("pip", "logs"):
            rest = words[place + 1 :]
            ends = [i for i, part in enumerate(rest) if part in SYNTAX]
            yield rest[: ends[0]] if ends else rest


def parse_call(arguments: Sequence[str]) -> None:
    """Parses a command line by the command's own options, without running it.

    Raises:
        typer.Exit: it asks for help or the version.
        Exception: an option or a value that the command does not have; one of click's that Typer does not name.
    """
    command = typer.main.get_command(build_app(arguments[:1] if arguments[0] in COMMANDS else COMMANDS))
    context, rest = command.make_context("indistill", list(arguments)), list(arguments)
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, rest)
        with contextlib.suppress(IndistillError):  # what is named need not be there
            context = command.make_context(name, list(rest), parent=context)


def run_line(line: str, words: dict[str, str], added: dict[str, list[str]]) -> Result:
    """Runs a line of shell in the current folder: a call of indistill in this process, any other by bash.

    Args:
        line: the line.
        words: words that others take the place of: large data, large networks.
        added: arguments after those of a command, by its name.
    """
    given = [words.get(word, word) for word in shlex.split(line, comments=True)]
    if given[0] != "indistill" or any(word in SYNTAX for word in given if word != ">"):
        return _run_bash(line)
    arguments, target = given[1:], None
    if ">" in arguments:
        at = arguments.index(">")
        arguments, target = arguments[:at], arguments[at + 1]
    result = run_cli(*arguments, *added.get(arguments[0], []))
    if target is not None:
        Path(target).write_text(result.out, encoding="utf-8")
    return result


def run_python(code: str, namespace: dict[str, object], place: str) -> str:
    """Runs Python in this process, and returns what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, place, "exec"), namespace)
    return printed.getvalue()


def _run_bash(line: str) -> Result:
    shim = f'indistill() {{ {shlex.quote(sys.executable)} -m indistill.cli.main "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shim + line],
        env=make_environment() | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)
