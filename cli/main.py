"""The command line: registers the commands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 our failure, 2 the user's input or usage, 130 interrupted.
"""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # Typer's pydantic would look for plugins at each start

import typer

from indistill import __version__
from indistill.errors import IndistillError, escape_text
from indistill.talk import say

INTERRUPTED = 130
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
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
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
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        from indistill.progress import silence_output

        silence_output()
    _check_words(arguments)
    try:
        build_app(choose_commands(arguments))(arguments, prog_name="indistill")
    except IndistillError as error:
        if debug:
            raise
        _fail(f"indistill: error: {error}", error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # how Typer ends after Ctrl-C
            _tell_interruption(end)
        raise
    except KeyboardInterrupt as error:
        _tell_interruption(error)
        sys.exit(INTERRUPTED)
    except Exception as error:  # the one place where a bug of ours becomes a line instead of a traceback
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _fail(f"indistill: error: '{escape_text(str(error.filename))}' is too long for the name of a file", 2)
        reason = " ".join(str(error).split())
        _fail(f"indistill: internal error: {type(error).__name__}: {reason} (--debug shows where)", 1, doubtful=True)


def _check_words(arguments: Sequence[str]) -> None:
    """Refuses names of commands and options that would steer the terminal, where Typer shows them as they are."""
    words = arguments[: 2 if arguments[:1] == ["index"] else 1]
    words = [*words, *(argument.partition("=")[0] for argument in arguments if argument.startswith("-"))]
    for word in words:
        if not word.isprintable():
            _fail(f"indistill: error: there is no command or option '{word}'", 2)


def _tell_interruption(error: BaseException) -> None:
    """Prints that the command was interrupted, and what the interrupted code noted on the way: how to go on."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    say("; ".join(["interrupted", *getattr(found, "__notes__", ())]))


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
    main()
