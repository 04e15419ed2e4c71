"""One process writes to a folder at a time. Needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from indistill.errors import InputError, describe_os_error

LOCK = "lock"  # stays in the folder: who removes it may remove another's


@contextmanager
def hold_lock(folder: Path, title: str, error: type[InputError] = InputError) -> Iterator[None]:
    """Holds the lock of a folder, which messages call by `title`; it ends with the process, however that ends.

    Args:
        folder: to be written to.
        title: what it is.
        error: raised where another process holds it.

    Raises:
        InputError: another process holds it, or the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as held:
        raise error(
            f"the {title} {folder} is being changed by another process; give the command again when that has ended"
        ) from held
    except OSError as failure:
        raise InputError(f"the {title} {folder} cannot be written: {describe_os_error(failure)}") from failure
    try:
        yield
    finally:
        lock.release()
