"""The machine: the interpreter, processors, memory, places that are written to, limits."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from indistill import __version__
from indistill.cli.doctor.findings import Finding, look
from indistill.errors import describe_os_error
from indistill.retrieval.milvus.location import CACHE

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")
LITTLE_DISK, LITTLE_SHARED_MEMORY, FEW_FILES = 2 * 10**9, 10**9, 1024


def inspect_machine() -> Iterator[Finding]:
    """Yields what the machine is and allows."""
    probes: dict[str, Callable[[], Finding]] = {
        "Python": inspect_python,
        "indistill": lambda: Finding("indistill", "ok", f"{__version__} in {Path(__file__).resolve().parents[2]}"),
        "CPUs": inspect_processors,
        "memory": inspect_memory,
        "cache": lambda: inspect_place("cache", CACHE.expanduser()),
        "temporary files": lambda: inspect_place("temporary files", Path(tempfile.gettempdir())),
        "this folder": inspect_working_folder,
        "shared memory": inspect_shared_memory,
        "open files": inspect_open_files,
    }
    for name, probe in probes.items():
        yield look(name, probe)


def inspect_python() -> Finding:
    """Returns the version of Python and the system that it runs on."""
    found = f"{platform.python_version()} ({platform.python_implementation()}), {platform.platform()}"
    return Finding("Python", "ok", found)


def inspect_processors() -> Finding:
    """Returns how many this process may use, by affinity and by the limit of its container."""
    total = os.cpu_count() or 1
    usable = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total)
    quota = read_quota(CGROUP)
    limited = quota is not None and quota < usable
    found = f"{min(usable, quota) if quota is not None else usable:g} of {total} usable"
    return Finding("CPUs", "ok", found + (" (limit of the container)" if limited else ""))


def read_quota(folder: Path) -> float | None:
    """Returns how many processors a control group (version 2 or 1) allows, None where it sets no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota.strip() in ("max", "-1") else int(quota) / int(period)


def inspect_memory() -> Finding:
    """Returns how much memory the machine has, and has free."""
    import psutil

    memory = psutil.virtual_memory()
    return Finding("memory", "ok", f"{format_size(memory.available)} of {format_size(memory.total)} available")


def inspect_place(name: str, place: Path) -> Finding:
    """Returns whether files can be written to a folder, which may not be there yet, and how much room there is."""
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place) as stream:
            stream.write(b"indistill")
            stream.flush()
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(
            name, "broken", f"{place}: {describe_os_error(error)}", "make it writable, or set HOME or TMPDIR"
        )
    return _judge_room(name, f"{place} is writable", free, LITTLE_DISK)


def inspect_working_folder() -> Finding:
    """Returns the room on the disk that holds the current folder."""
    place = Path.cwd()
    return _judge_room("this folder", str(place), shutil.disk_usage(place).free, LITTLE_DISK)


def inspect_shared_memory() -> Finding:
    """Returns the size of /dev/shm, where Ray keeps what processes share."""
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", f"this system has no {SHARED_MEMORY}")
    finding = _judge_room(
        "shared memory", str(SHARED_MEMORY), shutil.disk_usage(SHARED_MEMORY).total, LITTLE_SHARED_MEMORY, "in all"
    )
    if finding.state == "ok":
        return finding
    return Finding(finding.name, finding.state, finding.found, "Ray needs more: docker run --shm-size 2g")


def inspect_open_files() -> Finding:
    """Returns how many files a process may have open."""
    try:
        import resource
    except ImportError:  # not on Windows
        return Finding("open files", "ok", "this system sets no limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_name_limit(soft)} at once, at most {_name_limit(hard)}"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return Finding("open files", "warning", found, f"for 'serve' and Ray: ulimit -n {FEW_FILES}")
    return Finding("open files", "ok", found)


def format_size(size: int) -> str:
    """Returns a number of bytes in GB."""
    return f"{size / 1e9:.1f} GB"


def _name_limit(limit: int) -> str:
    return "no limit" if limit < 0 else f"{limit:,}"


def _judge_room(name: str, place: str, room: int, little: int, what: str = "free") -> Finding:
    found = f"{place}, {format_size(room)} {what}"
    if room < little:
        return Finding(name, "warning", found, f"less than {format_size(little)}: make room")
    return Finding(name, "ok", found)
