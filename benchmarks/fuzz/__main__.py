"""Hostile input, made at random: each attempt ends well or is refused in one line; none crashes, hangs or eats memory.

    python -m benchmarks.fuzz --minutes 10 [--target NAME ...] [--seed 0] [--keep FOLDER]
    python -m benchmarks.fuzz --attempts 1 --target NAME --seed N     # repeats attempt N

A target is a module of `benchmarks/fuzz/targets` with `attempt(random: random.Random, folder: Path) -> None`, which
raises an error that is not an InputError where it meets a defect; its `prepare() -> None`, where it has one, is called
once before. Attempts run in children of this process, forked after the imports, with limits of memory and of time. A
finding leaves its traceback, the command that repeats it, and the attempt's folder below the folder of --keep.
"""

import argparse
import faulthandler
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Protocol, cast

from indistill.errors import InputError

TARGETS = Path(__file__).parent / "targets"
BATCH = 200  # attempts of a child: what one leaves behind in memory is seen by few others
TIME_LIMIT_S = 60
MEMORY_LIMIT_BYTES = 6 << 30  # of addresses, more than the child has after the imports
FOUND = 3  # exit code of a child whose attempt is a finding


class Target(Protocol):
    """A module of `targets`."""

    def attempt(self, random: random.Random, folder: Path) -> None: ...


@dataclass
class Outcome:
    """What became of a target: findings by their place, with how often each was met."""

    target: str
    attempts: int = 0
    minutes: float = 0
    findings: Counter[str] = field(default_factory=Counter)


def load_target(name: str) -> Target:
    """Returns the module of a target."""
    return cast(Target, importlib.import_module(f"benchmarks.fuzz.targets.{name}"))


def list_targets() -> list[str]:
    """Returns the names of all targets."""
    return sorted(path.stem for path in TARGETS.glob("*.py") if path.stem != "__init__")


def try_once(target: Target, name: str, seed: int, folder: Path) -> None:
    """Makes one attempt, the same for the same seed, in a folder of its own. Raises what is a finding."""
    folder.mkdir(parents=True)
    try:
        target.attempt(random.Random(f"{name} {seed}"), folder)
    except InputError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {str(error)!r}") from error


def run_target(name: str, minutes: float, attempts: int | None, seed: int, keep: Path) -> Outcome:
    """Returns what became of attempts at a target in a time, or of a number of them."""
    target = load_target(name)
    getattr(target, "prepare", lambda: None)()
    outcome, started = Outcome(name), monotonic()
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        while True:
            spent = monotonic() - started
            count = BATCH if attempts is None else min(BATCH, attempts - outcome.attempts)
            if count <= 0 or (attempts is None and spent > minutes * 60):
                break
            first = seed + outcome.attempts
            end = None if attempts is not None else started + minutes * 60
            done, problem = _run_child(target, name, range(first, first + count), Path(scratch), end)
            outcome.attempts += done
            if problem is not None:
                outcome.attempts += 1
                where = _locate(problem)
                outcome.findings[where] += 1
                if outcome.findings[where] == 1:
                    _keep(name, first + done, problem, Path(scratch) / str(first + done), keep)
            for folder in Path(scratch).iterdir():
                _remove(folder)
    outcome.minutes = (monotonic() - started) / 60
    return outcome


def _run_child(
    target: Target, name: str, seeds: Sequence[int], scratch: Path, end: float | None
) -> tuple[int, str | None]:
    """Returns how many attempts of a child were made and found nothing, and what the one after them met, or None."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = scratch / "log"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_work(target, name, seeds, log, writer, end))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        done = len(stream.read())
    _, status = os.waitpid(child, 0)
    if status == 0:
        return done, None
    text = log.read_text(encoding="utf-8", errors="backslashreplace")
    if os.WIFSIGNALED(status):
        text += f"\nended by {signal.Signals(os.WTERMSIG(status)).name}"
    return done, text


def _work(target: Target, name: str, seeds: Sequence[int], log: Path, writer: int, end: float | None) -> int:
    """Makes attempts in a child, tells each that is done by a byte, and returns the exit code."""
    descriptor = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    stream = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")
    sys.stdout = sys.stderr = stream
    faulthandler.enable(stream)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_LIMIT_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in seeds:
        if end is not None and monotonic() > end:
            break
        folder = log.parent / str(seed)
        faulthandler.dump_traceback_later(TIME_LIMIT_S, exit=True, file=stream)
        try:
            try_once(target, name, seed, folder)
        except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc(file=stream)
            stream.flush()
            return FOUND
        faulthandler.cancel_dump_traceback_later()
        _remove(folder)
        os.write(writer, b".")
    return 0


def _locate(problem: str) -> str:
    """Returns what a finding is told apart by: the last line of ours in its traceback, and the error's type."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("File ") and "site-packages" not in line]
    own = [line for line in ours if "/fuzz/" not in line and f"{os.sep}indistill{os.sep}" in line] or ours or [""]
    last = "Timeout" if any(line.startswith("Timeout (") for line in lines) else lines[-1] if lines else "no output"
    return f"{last.partition(':')[0]} at {own[0 if last == 'Timeout' else -1]}"


def _keep(name: str, seed: int, problem: str, folder: Path, keep: Path) -> None:
    place = keep / f"{name}-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    command = f"python -m benchmarks.fuzz --attempts 1 --target {name} --seed {seed}"
    (place / "finding.json").write_text(
        json.dumps({"target": name, "seed": seed, "repeat": command, "problem": problem}, indent=2), encoding="utf-8"
    )
    (place / "problem.txt").write_text(problem, encoding="utf-8", errors="backslashreplace")
    if folder.exists():
        shutil.copytree(folder, place / "folder", symlinks=True, ignore=_list_special)
    last = problem.strip().splitlines()[-1:] or ["no output"]
    print(f"{place}: {last[0][:300]}", file=sys.stderr, flush=True)


def _list_special(folder: str, names: list[str]) -> list[str]:
    """Returns the pipes and sockets among names, whose copying would never end."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_file() or path.is_dir())]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tabulate(outcomes: Sequence[Outcome]) -> str:
    """Returns the outcomes as a table in Markdown."""
    lines = ["| target | attempts | minutes | findings |", "|---|---:|---:|---:|"]
    lines += [f"| {one.target} | {one.attempts:,} | {one.minutes:.1f} | {len(one.findings)} |" for one in outcomes]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="in all, shared by the targets evenly (1)")
    parser.add_argument("--attempts", type=int, help="of each target, in place of a time")
    parser.add_argument("--target", action="append", choices=list_targets(), help="repeatable; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt; the next one's is one more (0)")
    parser.add_argument("--keep", type=Path, default=Path("findings"), help="where findings are kept (findings)")
    return parser.parse_args()


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = parse_arguments()
    names = options.target or list_targets()
    outcomes = []
    for name in names:
        outcomes.append(run_target(name, options.minutes / len(names), options.attempts, options.seed, options.keep))
        for where, count in outcomes[-1].findings.most_common():
            print(f"{name}: {count} times {where}", file=sys.stderr)
    print(tabulate(outcomes))
    if any(outcome.findings for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
