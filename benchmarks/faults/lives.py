"""Lives of a command: processes that are forked with everything imported, or started afresh."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 300.0
REPOSITORY = Path(__file__).resolve().parents[2]
NOT_PRELOADED = ("huggingface_hub", "ray", "indistill.cli.__main__")  # they read the environment when imported


@dataclass(frozen=True)
class Life:
    """How a life ended.

    Attributes:
        code: exit code; minus the number of a signal that ended it.
        err: standard error.
        seconds: it took.
    """

    code: int
    err: str
    seconds: float


class Child:
    """A life that goes on."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log, self._begun = pid, log, time.monotonic()
        self._life: Life | None = None

    def wait(self, seconds: float = PATIENCE_S) -> Life | None:
        """Returns how it ended, None if it goes on after that many seconds."""
        until = time.monotonic() + seconds
        while self._life is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                err = self._log.read_text(encoding="utf-8", errors="replace")
                self._life = Life(os.waitstatus_to_exitcode(status), err, time.monotonic() - self._begun)
            elif time.monotonic() >= until:
                return None
            else:
                time.sleep(0.002)
        return self._life

    def send(self, number: int) -> None:
        """Sends a signal, if it has not ended."""
        if self._life is None:
            os.kill(self.pid, number)

    def end(self) -> Life:
        """Waits for its end, and kills it when that takes too long."""
        life = self.wait()
        if life is not None:
            return life
        self.send(signal.SIGKILL)
        killed = self.wait()
        assert killed is not None
        return killed


def fork_life(
    words: Iterable[str],
    log: Path,
    environment: Mapping[str, str],
    before: Callable[[], None] = lambda: None,
    modules: Path | None = None,
) -> Child:
    """Starts a command in a process that has all that this one has imported.

    Args:
        words: of the command line.
        log: a file for standard error.
        environment: variables to set.
        before: called in the process before the command begins.
        modules: a file for the names of the modules that are imported in the end.
    """
    log.touch()
    stops = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # until the child handles them
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        return Child(pid, log)
    code = 99
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(stream, 2)
        for number in stops:
            signal.signal(number, signal.SIG_DFL)
        os.environ.update(environment)
        sys.argv = ["indistill", *words]
        before()
        from indistill.cli.__main__ import run
        from indistill.signals import end_at_once_on_signals

        end_at_once_on_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
        try:
            run()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if modules is not None:
            modules.write_text("\n".join(sys.modules), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - nothing may go on as the process that forked this one
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def start_afresh(words: Iterable[str], log: Path, environment: Mapping[str, str]) -> Child:
    """Starts a command in a process of its own."""
    command = [sys.executable, "-m", "indistill.cli", *words]
    paths = {"PYTHONPATH": str(REPOSITORY)}
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | environment | paths,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    process.returncode = 0  # it is waited for by number
    return Child(process.pid, log)


def handles_signals(pid: int) -> bool:
    """Returns whether a process handles SIGTERM: Python itself has begun."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return False
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt")), "SigCgt 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def preload(names: Iterable[str]) -> None:
    """Imports modules, so that lives need not."""
    for name in names:
        if name not in sys.modules and not name.startswith(("__", *NOT_PRELOADED)):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - some are there only when others were asked for
                continue


def look_in_child(look: Callable[[], str]) -> str:
    """Returns a text that a function finds in a process of its own: its threads and memory are gone afterwards."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, look().encode())
        except BaseException as error:  # noqa: BLE001 - whatever it is
            os.write(writer, f"broken {type(error).__name__}: {error}"[:60_000].encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode()
    os.waitpid(pid, 0)
    return found
