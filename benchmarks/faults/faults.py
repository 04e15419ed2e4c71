"""The faults: each disturbs a command once and lets the try judge what came of it."""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.faults.lives import Child, Life, handles_signals
from benchmarks.faults.places import fill_disk, fill_shared_memory, give_up_rights, let_clock_jump, set_read_only
from benchmarks.faults.trial import Trial, restore

PAGE = 4096


def kill(trial: Trial) -> None:
    """SIGKILL at a random moment."""
    child = trial.start()
    life = child.wait(trial.draw_moment())
    child.send(signal.SIGKILL)
    life = child.end()
    if life.code != -signal.SIGKILL:
        trial.judge_life(life)
    trial.repeat(trial.judge_place([life]))


def interrupt(trial: Trial) -> None:
    """SIGINT at a random moment, in half of the tries of a fresh process, which still imports."""
    _stop(trial, signal.SIGINT)


def terminate(trial: Trial) -> None:
    """SIGTERM, likewise."""
    _stop(trial, signal.SIGTERM)


def _stop(trial: Trial, number: signal.Signals) -> None:
    afresh = trial.chosen.random() < 0.5
    child = trial.start(afresh=afresh)
    while not handles_signals(child.pid) and child.wait(0.002) is None:
        pass
    child.wait(trial.draw_moment() + (trial.chosen.uniform(0, 3.0) if afresh else 0.02))
    sent = time.monotonic()
    child.send(number)
    life = child.end()
    if life.code == -number and trial.look() == trial.known.new:  # Python was ending: all was done and said
        life = replace(life, code=0)
    if life.code:
        trial.stops_s.append(time.monotonic() - sent)
        if life.code != 128 + number:
            trial.note("unclear", f"exit {life.code} after {number.name}: {life.err[-1500:]}")
    trial.judge_life(life)
    trial.repeat(trial.judge_place([life]))


def fill(trial: Trial) -> None:
    """A disk with less room than the result needs."""
    room = trial.chosen.randrange(0, max(PAGE, trial.known.size_bytes), PAGE)
    filler = fill_disk(trial.here.parent, room)
    life = trial.start().end()
    trial.judge_life(life)
    found = trial.judge_place([life])
    filler.unlink()
    trial.repeat(found)


def forbid_writing(trial: Trial) -> None:
    """A file system that is read-only."""
    disk = trial.here.parent
    (disk / "tmp").mkdir(exist_ok=True)
    set_read_only(disk, read_only=True)
    try:
        life = trial.start().end()
        trial.judge_life(life)
        found = trial.judge_place([life])
    finally:
        set_read_only(disk, read_only=False)
    trial.repeat(found)


def withhold(trial: Trial) -> None:
    """Permission denied: to write the place, or to read something that is given."""
    hidden = trial.chosen.choice([None, *sorted(_list_given(trial))])
    if hidden is None:
        for path in (trial.here, *trial.here.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
    else:
        (trial.given / hidden).chmod(0)
    life = trial.start(before=give_up_rights).end()
    trial.judge_life(life)
    found = trial.judge_place([life], exact=hidden is None)
    restore(trial.root)
    for path in (trial.here, *trial.here.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    if life.code:
        trial.repeat(found)


def _list_given(trial: Trial) -> list[str]:
    """Returns what a command reads."""
    words = [word for word in trial.command.line.split() if word.startswith("{given}/")]
    return [word.removeprefix("{given}/").partition(":")[0] for word in words]


def remove_while_read(trial: Trial) -> None:
    """Something that is given goes away at a random moment: a folder, a model, an image."""
    child = trial.start()
    child.wait(trial.draw_moment())
    path = trial.given / trial.chosen.choice(_list_given(trial) or ["gallery"])
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    if path.is_file() or trial.chosen.random() < 0.5:
        _remove(path)
    else:
        _remove(trial.chosen.choice(inside))
    life = child.end()
    trial.judge_life(life)
    found = trial.judge_place([life], exact=False)
    restore(trial.root)
    if life.code:
        trial.repeat(found)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def turn_back_clock(trial: Trial) -> None:
    """The clock goes back by a day."""
    after_s = trial.draw_moment()
    life = trial.start(before=lambda: let_clock_jump(after_s)).end()
    trial.judge_life(life)
    if life.code:
        trial.note("lost", f"the command failed: {life.err[-500:]}")
    trial.repeat(trial.judge_place([life]))


def race(trial: Trial) -> None:
    """The same command twice at once."""
    first = trial.start()
    first.wait(trial.draw_moment(0.5))
    second = trial.start()
    lives = [first.end(), second.end()]
    for life in lives:
        trial.judge_life(life)
    if all(life.code for life in lives):
        trial.note("lost", f"neither completed: {[life.err[-500:] for life in lives]}")
    trial.repeat(trial.judge_place(lives))


def fill_memory_disk(trial: Trial) -> None:
    """No room in /dev/shm."""
    life = trial.start(before=fill_shared_memory).end()
    trial.judge_life(life)
    if life.code:
        trial.note("lost", f"the command failed: {life.err[-500:]}")
    trial.repeat(trial.judge_place([life]))


def kill_worker(trial: Trial) -> None:
    """SIGKILL to a process that the command has started."""
    assert trial.command.workers is not None
    child = trial.start(more=trial.command.workers, afresh=True)
    life, workers = None, []
    while life is None and not workers:
        life, workers = child.wait(0.05), _list_workers(child)
    if life is None:
        life = child.wait(trial.chosen.uniform(0, 4.0))
    for worker in workers[:1]:
        if worker.is_running():
            worker.kill()
    life = child.end()
    trial.judge_life(life)
    trial.judge_place([life], exact=False)
    _repeat_with_workers(trial, life)


def _list_workers(child: Child) -> list[psutil.Process]:
    try:
        found = psutil.Process(child.pid).children(recursive=True)
        return [worker for worker in found if "spawn_main" in " ".join(worker.cmdline())]
    except psutil.Error:
        return []


def _repeat_with_workers(trial: Trial, life: Life) -> None:
    if not life.code:
        return
    again = trial.start(more=trial.command.workers or "", again=True, afresh=True).end()
    if again.code or trial.look().startswith(("broken", "nothing")):
        trial.note("repeat failed", f"exit {again.code}: {again.err[-1500:]}")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "kill -9": kill,
    "SIGINT": interrupt,
    "SIGTERM": terminate,
    "disk full": fill,
    "read-only": forbid_writing,
    "no permission": withhold,
    "file vanishes": remove_while_read,
    "clock jumps back": turn_back_clock,
    "two at once": race,
    "/dev/shm full": fill_memory_disk,
    "worker killed": kill_worker,
}
RANDOM = ("kill -9", "SIGINT", "SIGTERM", "disk full", "file vanishes", "two at once")  # tried as often as is asked for
