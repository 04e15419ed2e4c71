"""Standard output, which holds data alone."""

import os
import sys

import typer


def emit(data: str | bytes, end: str = "\n") -> None:
    """Prints text or bytes. A reader that leaves early, as `head` does, ends the command without an error."""
    try:
        typer.echo(data + end if isinstance(data, str) else data + end.encode(), nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
