"""What Ctrl-C leaves behind, noted on the exception for the line that `main` prints. Needs neither torch nor NumPy."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

NOTHING = "nothing was written"


@contextmanager
def note_on_interruption(describe: Callable[[], str]) -> Iterator[None]:
    """Notes on Ctrl-C what is left behind, unless code further in, which knows better, has done so."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not getattr(error, "__notes__", ()):
            error.add_note(describe())
        raise


def explain_nothing(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that notes on Ctrl-C that nothing was written, unless code further in knows better."""

    @wraps(command)
    def explained(**options: Any) -> None:  # noqa: ANN401 - any command's
        with note_on_interruption(lambda: NOTHING):
            command(**options)

    return explained


def explain_run(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that trains the run `out`, which notes on Ctrl-C what became of the run."""

    @wraps(command)
    def explained(**options: Any) -> None:  # noqa: ANN401 - any command's
        if options["devices"] > 1:  # the processes that are started say it
            command(**options)
            return
        out: Path = options["out"]
        before = _look(out)
        with note_on_interruption(lambda: _describe(out, before)):
            command(**options)

    return explained


def _look(out: Path) -> list[int | None]:
    """Returns when the configuration of a run and its weights were written, None for what is not there."""
    from indistill.run_folder import WEIGHTS_NAMES

    files = [out / name for name in ("config.yaml", *WEIGHTS_NAMES.values())]
    return [file.stat().st_mtime_ns if file.is_file() else None for file in files]


def _describe(out: Path, before: list[int | None]) -> str:
    now = _look(out)
    if now == before:
        unfinished = now[0] is not None and not any(now[1:])
        return f"the run {out} is as it was: --resume goes on" if unfinished else NOTHING
    if any(now[1:]):
        return f"the run {out} is complete; 'indistill report {out}' measures how close the student is"
    return f"{out} has no checkpoint yet: the same command with --resume begins with the first epoch"
