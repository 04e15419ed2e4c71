"""Places that fail: a full or read-only disk, a full /dev/shm, no rights, a clock that jumps. For Linux and root."""

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_BYTES = 48 * 2**20
CAPABILITIES = 0x20080522  # version of the interface
DAY_S = 86_400
NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


@contextmanager
def mount_disk(folder: Path) -> Iterator[None]:
    """Makes a folder a small file system of its own."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=777", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def set_read_only(folder: Path, *, read_only: bool) -> None:
    """Makes such a file system read-only, or writable again."""
    subprocess.run(["mount", "-o", f"remount,{'ro' if read_only else 'rw'}", folder], check=True)


def fill_disk(folder: Path, left_bytes: int) -> Path:
    """Returns a file that leaves that much room on the file system of a folder."""
    found = os.statvfs(folder)
    file = folder / "filler"
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, found.f_bavail * found.f_bsize - left_bytes))
    return file


def fill_shared_memory() -> None:
    """Gives this process a /dev/shm of its own without room."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/dev/shm"], check=True)
    Path("/dev/shm/full").write_bytes(bytes(16 * 1024))


def give_up_rights() -> None:
    """Binds this process, root's, to what its files' modes permit."""
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def let_clock_jump(after_s: float) -> None:
    """Sets the clock of this process back by a day when some seconds have passed."""
    clock, clock_ns, begun = time.time, time.time_ns, time.monotonic()

    def jumped() -> bool:
        return time.monotonic() - begun > after_s

    time.time = lambda: clock() - DAY_S * jumped()
    time.time_ns = lambda: clock_ns() - DAY_S * 10**9 * jumped()
