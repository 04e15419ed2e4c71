"""What SIGINT (Ctrl-C) and SIGTERM do to a command: it unwinds, and has ended within two seconds whatever it does.

Imports as little as can be: a signal that comes before `catch_signals` is Python's own affair.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 1.5  # for a command to unwind; then it is ended as by SIGKILL, which all that is written outlives
AGAIN_S = 0.02
SHOW_CURSOR = b"\x1b[?25h"

_seen: list["Interruption"] = []  # the one that is on its way
_code: list[int] = []  # with which the process ends before Python takes itself apart


class Interruption(KeyboardInterrupt):
    """A signal asks for the end of the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def end_at_once_on_signals() -> None:
    """Makes the signals end the process with a line, for times at which there is nothing to undo."""
    _handle(_end_at_once)


def catch_signals() -> None:
    """Makes the first signal raise `Interruption`, and end the process if it has not ended 1.5 seconds later.

    It may be lost on the way: in a destructor or a callback Python cannot raise it, and libraries have `except:`. A
    call into C may go on for long. Signals that are ignored stay so.
    """
    _seen.clear()
    atexit.register(_leave)  # before what commands register, and so called after it
    _handle(_interrupt)
    if os.name != "posix":  # other systems have no such calls
        return
    sys.unraisablehook = _raise_again
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_wait_for_signal, args=(reader,), daemon=True).start()


def leave_termination() -> None:
    """Lets SIGTERM end the process without a word, for one of several whose launcher ends them so when one fails."""
    if threading.current_thread() is threading.main_thread():  # no other may; Ray trains in one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def keep_handlers() -> Iterator[None]:
    """Keeps the handlers of the signals, for libraries that put their own in place."""
    handlers = {number: signal.getsignal(number) for number in CAUGHT}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other may set them
            for number, handler in handlers.items():
                if handler is not None:  # one that is not Python's cannot be set
                    signal.signal(number, handler)


def leave_soon(code: int) -> None:
    """Makes the process end with a code as soon as what is registered for its end is done.

    Python would take all modules and memory apart first, which lasts for seconds once PyTorch has worked, and for which
    nobody who has pressed Ctrl-C wants to wait.
    """
    _code.append(code)


def find_signal() -> int | None:
    """Returns the number of the signal that is being acted on, None where there is none."""
    return _seen[0].number if _seen else None


def describe_interruption(error: BaseException | None) -> str:
    """Returns that the command was interrupted, and what the interrupted code noted on the way: how to go on."""
    return "; ".join(["interrupted", *getattr(error, "__notes__", ())])


def _handle(handler: "signal._HANDLER") -> None:
    for number in CAUGHT:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if not _seen:  # else the first one is on its way
        _seen.append(Interruption(number))
        raise _seen[0]


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    _end(number)


def _end(number: int) -> None:
    line = describe_interruption(_seen[0] if _seen else None) + "\n"
    os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + line.encode(errors="backslashreplace"))
    os._exit(128 + number)


def _leave() -> None:
    if _code:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # it is closed, or nobody reads it any more
                stream.flush()
        os._exit(_code[0])


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    if isinstance(lost.exc_value, Interruption):
        _seen.clear()
        main = threading.main_thread().ident
        threading.Timer(AGAIN_S, signal.pthread_kill, (main, lost.exc_value.number)).start()
    else:
        sys.__unraisablehook__(lost)


def _wait_for_signal(reader: int) -> None:
    """Is a thread's: Python's own handlers wait until the main thread is back from C, this does not."""
    while True:
        number = os.read(reader, 1)[0]
        if number in CAUGHT and signal.getsignal(number) is _interrupt:  # not where a server ends in its own way
            break
    threading.Event().wait(GRACE_S)
    _end(number)
