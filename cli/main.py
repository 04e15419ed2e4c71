"""The command line: registers the commands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 our failure, 2 the user's input or usage, 130 interrupted.
"""

import sys
from typing import Annotated

import typer

from indistill import __version__
from indistill.cli import bench, compress, demo, evaluate, export, index, search, train
from indistill.errors import IndistillError

app = typer.Typer(
    help="Compress an image-embedding model by InDistill, export it, index a gallery, measure what is deployed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(train.train)
app.command()(compress.compress)
app.command()(export.export)
app.command()(bench.bench)
app.add_typer(index.app, name="index")
app.command()(search.search)
app.command()(evaluate.evaluate)
app.command()(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"indistill {__version__}")
        raise typer.Exit


@app.callback()
def set_up(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Compress an image-embedding model by InDistill, export it, index a gallery, measure what is deployed."""


def main() -> None:
    """Runs the command line and exits."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        app(arguments)
    except IndistillError as error:
        if debug:
            raise
        typer.echo(f"indistill: error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # the one place where a bug of ours becomes a line instead of a traceback
        if debug:
            raise
        reason = " ".join(str(error).split())
        typer.echo(f"indistill: internal error: {type(error).__name__}: {reason} (--debug shows where)", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
