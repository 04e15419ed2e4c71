"""Each case is a process of its own: signals are a process's affair."""

import signal
import subprocess
import sys

import pytest

from indistill.signals import keep_handlers
from tests.cli.calls import make_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
# SIGINT is ignored where the tests are a job in the background, and what is ignored stays so.
DEFAULT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
CATCH = f"{DEFAULT}from indistill import signals; signals.GRACE_S = 0.2; signals.catch_signals()\n"
# Sends a signal while Python, which has imported a module, is in the callback that forgets the module's lock.
IMPORT = """
import os, signal, sys, time
def look(frame, event, arg):
    if event == "call" and frame.f_code.co_name == "cb" and "importlib" in frame.f_code.co_filename:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(look)
try:
    import colorsys
    time.sleep(0.5)
    print("lost")
except KeyboardInterrupt:
    print("caught")
"""


def run_code(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=make_environment(), timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_raises_an_interruption_that_knows_its_number(name: str) -> None:
    code = f"""{CATCH}
import os, signal
try:
    os.kill(os.getpid(), signal.{name}); print("went on")
except KeyboardInterrupt as error:
    os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb what is being tidied up
    print(error.number == signals.find_signal() == signal.{name})
"""
    assert run_code(code).stdout == "True\n"


def test_a_signal_that_comes_in_a_callback_is_raised_again() -> None:
    done = run_code(CATCH + IMPORT)
    assert (done.stdout, done.stderr) == ("caught\n", "")


def test_without_that_python_loses_it() -> None:
    done = run_code(DEFAULT + IMPORT)
    assert done.stdout == "lost\n"
    assert "Exception ignored in: <function _get_module_lock" in done.stderr


@pytest.mark.parametrize(
    "work",
    [
        "while True:\n    try:\n        time.sleep(0.01)\n    except:\n        pass",
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    ],
    ids=["swallowed", "in C"],
)
def test_a_command_that_goes_on_is_ended(work: str) -> None:
    begin = "import hashlib, os, signal, threading, time\n"
    kill = "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
    done = run_code(CATCH + begin + kill + work)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "interrupted\n")


def test_a_handler_of_ones_own_is_not_ended() -> None:
    code = f"""{CATCH}
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("mine"))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.5)
"""
    done = run_code(code)
    assert (done.returncode, done.stdout) == (0, "mine\n")


@pytest.mark.parametrize(("module", "name"), [("typer", "SIGINT"), ("typer", "SIGTERM"), ("PIL.Image", "SIGINT")])
def test_a_signal_while_the_program_imports_is_one_line(module: str, name: str) -> None:
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a job in the background
class Finder:
    def find_spec(self, found, *given):
        if found == "{module}": os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
sys.argv = "indistill index build /nowhere --model /nowhere.onnx --out /nowhere".split()
from indistill.cli.__main__ import run
run()
"""
    done = run_code(code)
    assert (done.returncode, done.stderr) == (128 + signal.Signals[name], "interrupted\n")


def test_a_command_that_tidies_up_for_too_long_is_ended_with_what_it_noted() -> None:
    code = f"""{CATCH}
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt as error:
    error.add_note("3 embeddings are kept")
    time.sleep(60)
"""
    done = run_code(code)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "interrupted; 3 embeddings are kept\n")


def test_an_interrupted_command_tidies_up_and_is_not_taken_apart() -> None:
    code = f"""{DEFAULT}
import atexit, os, sys
import indistill.cli.main as program
class Network:
    def __del__(self, write=os.write): write(1, b"taken apart")  # which takes PyTorch seconds
def main():
    sys.modules["kept"] = Network()
    atexit.register(print, "tidied")
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        sys.exit(130)
program.main = main
from indistill.cli.__main__ import run
run()
"""
    done = run_code(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "tidied\n", "")


def test_handlers_are_kept_where_a_library_sets_its_own() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with keep_handlers():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before
