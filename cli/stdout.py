"""Standard output, which holds data alone."""

import os
import sys

import typer


def emit(text: str) -> None:
    """Prints a line, or lines. A reader that leaves early, as `head` does, ends the command without an error."""
    try:
        typer.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
