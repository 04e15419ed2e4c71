"""Standard output, which holds data alone."""

import os
import sys

import typer

from indistill.errors import escape_text


def emit(data: str | bytes, end: str = "\n", *, styled: bool = False) -> None:
    """Prints text or bytes: as they are to a file or pipe, and on a terminal with nothing in it that steers it.

    A reader that leaves early, as `head` does, ends the command without an error.

    Args:
        data: what is printed.
        end: what follows it.
        styled: whether the text holds colours of ours, and was made harmless already.
    """
    if sys.stdout.isatty() and not styled:
        text = data if isinstance(data, str) else os.fsdecode(data)
        data = "\n".join(escape_text(line, len(line)) for line in text.split("\n"))
    try:
        if isinstance(data, str):
            sys.stdout.write(data + end)
        else:
            typer.echo(data + end.encode(), nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
