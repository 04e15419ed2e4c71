"""Small files from anyone, read whole: none that is endless, enormous, or waits for a writer. Needs no torch."""

import errno
import stat
from pathlib import Path

MAX_TEXT_BYTES = 16 * 2**20  # of a manifest; the largest have a line for each trial of an index type


def require_regular(path: Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        OSError: there is no such file, or it is a folder, a pipe or a device, whose reading might never end.
    """
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device")
    return known.st_size


def read_bounded(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: there is no such file, it is none that ends, or it has more bytes than the limit.
    """
    require_regular(path)
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
    return content
