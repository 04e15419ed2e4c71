"""Progress on standard error: one bar on a terminal, a line now and then elsewhere. Needs no torch."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from indistill.errors import escape_text
from indistill.talk import say

LINE_EVERY_S = 10.0


def make_console() -> Console:
    """Returns a console that writes to standard error as it is now."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)


def silence_output() -> None:
    """Makes all that this process prints go nowhere: of several that train together, the first one prints."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - as long as the process lives


@contextmanager
def show_status(what: str) -> Iterator[None]:
    """Says on a terminal what is being done as long as it is; elsewhere in a line, if it takes over ten seconds."""
    console = make_console()
    if console.is_terminal:
        with console.status(Text(escape_text(what))):
            yield
        return
    timer = threading.Timer(LINE_EVERY_S, lambda: say(f"{what} ..."))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def show_progress(what: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the number of items just done.

    Shows the share done, the rate and the time left; without a terminal, in a line every ten seconds.
    """
    console, started = make_console(), time.monotonic()
    done, last_line = 0, started
    with _make_bar(console, f"{{task.fields[rate]:>8}} {unit}/s") as bar:
        task = bar.add_task(escape_text(what), total=total, rate="")

        def advance(count: int) -> None:
            nonlocal done, last_line
            done += count
            now = time.monotonic()
            if console.is_terminal:
                bar.update(task, completed=done, rate=f"{done / max(now - started, 1e-9):,.0f}")
            elif now - last_line > LINE_EVERY_S:
                last_line = now
                rate = done / (now - started)
                left = timedelta(seconds=round((total - done) / rate)) if done else "unknown time"
                say(f"{what}: {done:,} of {total:,} {unit}, {rate:,.0f}/s, {left} left")

        yield advance


def _make_bar(console: Console, fields: str) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(fields),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
