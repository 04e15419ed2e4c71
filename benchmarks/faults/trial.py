"""One try: a command, a place for it, and how it ended."""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.commands import NOTHING, Command, make_base, read_hub_environment
from benchmarks.faults.lives import Child, Life, fork_life, look_in_child, preload, start_afresh
from benchmarks.faults.places import mount_disk

DOCUMENTED = (0, 1, 2, 130, 143)


@dataclass(frozen=True)
class Known:
    """What is known of a command that nothing disturbs.

    Attributes:
        old: what is in the place before.
        new: and afterwards.
        seconds: a forked life takes.
        size_bytes: of the place afterwards.
    """

    old: str
    new: str
    seconds: float
    size_bytes: int


@dataclass
class Trial:
    """A try of a command with a fault.

    Attributes:
        command: the command.
        known: what it does when nothing disturbs it.
        root: of all files.
        chosen: gives the random moments.
        problems: what must not be.
        stops_s: seconds from each signal to the end.
    """

    command: Command
    known: Known
    root: Path
    chosen: random.Random
    problems: dict[str, list[str]] = field(default_factory=dict)
    stops_s: list[float] = field(default_factory=list)
    _logs: int = 0

    @property
    def here(self) -> Path:
        """The place that is written to."""
        return self.root / "disk" / "here"

    @property
    def given(self) -> Path:
        """What is read."""
        return self.root / "given"

    def draw_moment(self, share: float = 1.0) -> float:
        """Returns a random moment of the command's time, in seconds."""
        return self.chosen.uniform(0, share * self.known.seconds)

    def start(
        self, *, more: str = "", again: bool = False, afresh: bool = False, before: Callable[[], None] = lambda: None
    ) -> Child:
        """Starts the command: forked, or in a fresh process."""
        words = [*self.command.make_words(self.here, self.given, again=again), *more.split()]
        self._logs += 1
        log = self.root / f"log-{self._logs}"
        environment = make_environment(self.root, self.here)
        if afresh:
            return start_afresh(words, log, environment)
        return fork_life(words, log, environment, before)

    def note(self, kind: str, text: str) -> None:
        """Notes a problem."""
        self.problems.setdefault(kind, []).append(text)

    def look(self) -> str:
        """Returns what is in the place."""
        return look_in_child(lambda: self.command.look(self.here))

    def judge_life(self, life: Life) -> None:
        """Notes what is wrong with how a life ended: its line, its exit code."""
        lines = [line for line in life.err.splitlines() if line.startswith("indistill: error: ")]
        noisy = any(sign in life.err for sign in ("Traceback", "Exception ignored", "internal error"))
        usage = life.code == 2 and "Usage: " in life.err  # Typer's own box, of what it looks at before us
        clear = len(lines) == (life.code in (1, 2) and not usage) and life.code in DOCUMENTED
        if life.code in (130, 143):
            clear = sum(line.startswith("interrupted") for line in life.err.splitlines()) == 1
        if noisy or not clear:
            self.note("unclear", f"exit {life.code}: {life.err[-1500:]}")

    def judge_place(self, lives: list[Life], *, exact: bool = True) -> str:
        """Returns what is in the place, and notes it where it is neither the old result nor the new one, whole.

        Args:
            lives: all that wrote there.
            exact: whether a command that ended well must have made the result that an undisturbed one makes.
        """
        found, done = self.look(), any(life.code == 0 for life in lives)
        if found.startswith("broken"):
            self.note("half-written", found)
        elif done and not exact:
            pass
        elif found not in (self.known.old, self.known.new) or (done and found != self.known.new):
            self.note("lost", f"{found}, was {self.known.old}, should be {self.known.new}; codes {lives}")
        return found

    def repeat(self, found: str) -> None:
        """Gives the command again, unless it was completed, and notes if it does not complete it."""
        if found == self.known.new != self.known.old:
            return
        life = self.start(again=True).end()
        found = self.look()
        if life.code or found != self.known.new:
            self.note("repeat failed", f"exit {life.code}, {found}: {life.err[-1500:]}")


def make_environment(root: Path, here: Path) -> dict[str, str]:
    """Returns the variables of a life: its temporary files lie on the disk of its place."""
    scratch = here.parent / "tmp"
    if not scratch.exists():
        scratch.mkdir()
        scratch.chmod(0o1777)
    own = {"HOME": str(root / "home"), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return own | (read_hub_environment(here) if (here / "hub").exists() else {})


class Stage:
    """The folder in which all tries take place, one after another at the same paths.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.chmod(0o755)
        (root / "home").mkdir(mode=0o777)
        (root / "home").chmod(0o777)
        (root / "disk").mkdir()
        make_base(self.root, self._run)
        shutil.copytree(root / "given", root / "pristine")

    def _run(self, line: str) -> None:
        modules = self.root / "modules"
        environment: Mapping[str, str] = make_environment(self.root, self.root / "disk" / "here")
        life = fork_life(line.split(), self.root / "log", environment, modules=modules).end()
        if life.code:
            raise RuntimeError(f"{line} ended with {life.code}: {life.err}")
        preload(modules.read_text(encoding="utf-8").splitlines())

    def learn(self, command: Command) -> Known:
        """Returns what a command does when nothing disturbs it."""
        with self.open_place(command, random.Random(0), Known("", "", 0, 0)) as trial:
            old = trial.look()
            life = trial.start().end()
            if life.code:
                raise RuntimeError(f"{command.name} ended with {life.code}: {life.err}")
            new = trial.look()
            if new.startswith("broken") or new == NOTHING:
                raise RuntimeError(f"{command.name}: {new}")
            size = sum(path.stat().st_size for path in trial.here.rglob("*") if path.is_file())
        return Known(old, new, life.seconds, size)

    @contextmanager
    def open_place(self, command: Command, chosen: random.Random, known: Known) -> Iterator[Trial]:
        """Yields a try whose place is ready, on a small disk of its own."""
        disk, given = self.root / "disk", self.root / "given"
        shutil.rmtree(disk)
        shutil.rmtree(given)
        shutil.copytree(self.root / "pristine", given)
        with mount_disk(disk):
            trial = Trial(command, known, self.root, chosen)
            command.prepare(trial.here, self.root)
            try:
                yield trial
            finally:
                (trial.here / "hub").unlink(missing_ok=True)
        for log in self.root.glob("log-*"):
            log.unlink()


def restore(root: Path) -> None:
    """Puts back what the commands read."""
    given = root / "given"
    shutil.rmtree(given, ignore_errors=True)
    shutil.copytree(root / "pristine", given)
