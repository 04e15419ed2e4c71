"""The command line: registers the commands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 our failure, 2 the user's input or usage, 130 interrupted, 143 ended by SIGTERM.
"""

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # Typer's pydantic would look for plugins at each start

import typer
from typer.core import TyperGroup

from indistill import __version__
from indistill.errors import IndistillError, InputError, describe_os_error, escape_line
from indistill.signals import describe_interruption, find_signal, leave_termination
from indistill.talk import say

INTERRUPTED = 130
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
USAGE_ERROR: Any = typer.BadParameter.__base__  # which Typer has no public name for
COMMANDS = (
    "train",
    "compress",
    "report",
    "compare",
    "export",
    "info",
    "pack",
    "push",
    "pull",
    "bench",
    "index",
    "search",
    "dedupe",
    "evaluate",
    "serve",
    "plan",
    "demo",
    "doctor",
)


class HarmlessGroup(TyperGroup):
    """Commands whose usage errors, which Typer shows in a box, cannot steer a terminal by the words they quote."""

    def make_context(self, *given: Any, **named: Any) -> Any:  # noqa: ANN401 - as Typer has it
        """Reads the options before the command."""
        with _making_harmless():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as Typer has it
        """Reads the command and its options, and runs it."""
        with _making_harmless():
            return super().invoke(ctx)


@contextmanager
def _making_harmless() -> Iterator[None]:
    try:
        yield
    except USAGE_ERROR as error:
        error.message = escape_line(error.message)
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"indistill {__version__}")
        raise typer.Exit


def set_up(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Compress an image-embedding model by InDistill, export it, index a gallery, measure what is deployed."""


def build_app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """Returns the app with some of the commands. Building all of them takes longer than a search."""
    app = typer.Typer(cls=HarmlessGroup, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(set_up)
    for name in names:
        module = importlib.import_module(f"indistill.cli.commands.{name}")
        if name == "index":
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def choose_commands(arguments: Sequence[str]) -> Sequence[str]:
    """Returns the command that is given, or whose words a shell asks to complete; all where it is not known yet."""
    words = arguments
    if "_INDISTILL_COMPLETE" in os.environ:  # zsh and fish, and bash, each by a variable of its own; not the last word
        line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
        words = line.split()[1:] if line[-1:].isspace() else line.split()[1:-1]
    return words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS


def main() -> None:
    """Runs the command line and exits."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    if "TORCHELASTIC_RUN_ID" in os.environ:
        leave_termination()
        if os.environ["RANK"] != "0":
            from indistill.progress import silence_output

            silence_output()
    try:
        build_app(choose_commands(arguments))(arguments, prog_name="indistill")
    except SystemExit as end:
        if end.code != INTERRUPTED:  # how Typer ends after Ctrl-C
            raise
        _end_interrupted(end)
    except KeyboardInterrupt as error:
        _end_interrupted(error)
    except Exception as error:  # the one place where a bug of ours becomes a line instead of a traceback
        if find_signal() is not None:  # libraries make errors of their own of it
            _end_interrupted(error)
        if debug:
            raise
        if isinstance(error, IndistillError):
            _fail(f"indistill: error: {error}", error.exit_code)
        if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
            _fail(f"indistill: error: {_describe_file_error(error)}", InputError.exit_code)
        reason = " ".join(str(error).split())
        _fail(f"indistill: internal error: {type(error).__name__}: {reason} (--debug shows where)", 1, doubtful=True)


def _end_interrupted(error: BaseException) -> NoReturn:
    """Says that the command was interrupted, and exits."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    say(describe_interruption(found))
    sys.exit(128 + (find_signal() or signal.SIGINT))


def _describe_file_error(error: OSError) -> str:
    """Returns which file it is about, and the reason of the operating system."""
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{describe_os_error(error)} (--debug shows where)"


def _fail(line: str, code: int, *, doubtful: bool = False) -> NoReturn:
    """Prints why the command fails and exits; of several processes that train together one prints."""
    if "torch" not in sys.modules:
        say(line)
    else:
        from indistill.parallel.processes import claim_failure, count_processes

        if claim_failure(doubtful=doubtful):
            say(line, sys.__stderr__ if count_processes() > 1 else sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    from indistill.cli.__main__ import run

    run()
