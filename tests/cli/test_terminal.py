"""Names and labels steer no terminal, neither in talk nor in data; to a file or a pipe, data are what they are."""

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from indistill.cli.output import format_table
from indistill.cli.stdout import emit
from indistill.errors import DataError
from indistill.progress import show_progress, show_status
from indistill.talk import say
from tests.cli.calls import assert_refused, make_environment, run_cli, succeed

HOSTILE = "a\x1b[31m\x1b]0;owned\x07\u202eb\nc\x9b2J[/]"
HARMLESS = "a\\x1b[31m\\x1b]0;owned\\x07\\u202eb\\nc\\x9b2J[/]"


class Terminal(io.StringIO):
    """What a terminal is shown."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Returns a terminal that both streams go to."""
    made = Terminal()
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_talk_and_errors_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    assert capsys.readouterr().err == HARMLESS + "\n"
    assert str(DataError(HOSTILE)) == HARMLESS
    assert len(str(DataError("x" * 100_000))) < 6000


def test_data_on_a_terminal_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    emit("one\n" + HOSTILE.replace("\n", ""))
    assert terminal.getvalue() == "one\n" + HARMLESS.replace("\\n", "") + "\n"


def test_data_to_a_file_is_exact(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    emit(HOSTILE)
    emit(HOSTILE.encode())
    assert capfdbinary.readouterr().out == 2 * (HOSTILE.encode() + b"\n")


def test_bytes_on_a_terminal_are_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    emit(HOSTILE.replace("\n", "").encode() + b"\xe9")
    assert terminal.getvalue() == HARMLESS.replace("\\n", "") + "\\udce9\n"


def test_cells_of_a_table_are_harmless() -> None:
    text = format_table(["name", HOSTILE], [[HOSTILE, "1"]])
    assert text.count(HARMLESS) == 2
    assert "\x1b" not in text


@pytest.mark.parametrize("what", ["reading [/]", "reading [/red] [link=x]", f"reading {HOSTILE}"])
def test_bars_and_spinners_show_any_name_as_it_is(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with show_progress(what, 2) as advance:
        advance(2)
    with show_status(what):
        pass
    shown = terminal.getvalue()
    assert shown.count(what.replace(HOSTILE, HARMLESS)) >= 2
    assert "\x1b]0" not in shown
    assert "\u202e" not in shown


def test_an_argument_cannot_steer_the_terminal_by_its_error() -> None:
    for arguments in (["search", HOSTILE, "query"], ["info", HOSTILE], ["push", HOSTILE, "owner/name"]):
        result = run_cli(*arguments)
        assert_refused(result, "a\\x1b[31m")
    for arguments in (
        [HOSTILE],
        ["index", HOSTILE],
        ["search", f"--{HOSTILE}"],
        ["plan", "--images", "1", "--cores", HOSTILE],
        ["plan", "--images", "1", HOSTILE],
    ):
        result = run_cli(*arguments)
        assert result.code == 2
        assert not {"\x1b", "\u202e", "\x9b"} & set(result.err)


def test_an_argument_too_long_for_a_file_is_refused() -> None:
    assert_refused(run_cli("info", "x" * 5000), "File name too long")
    assert_refused(
        run_cli("train", "--model", f"{'a' * 300}?b=c", "--data", "digits/train", "--out", "none"), "File name too long"
    )


def test_a_hostile_name_in_a_gallery_is_shown_harmless(places: dict[str, Path]) -> None:
    folder = places["here"] / "hostile"
    name, shown = HOSTILE.replace("/", ""), HARMLESS.replace("/", "")
    for label in ("[red]one", name):
        (folder / label).mkdir(parents=True)
        (folder / label / f"{name}.png").write_bytes(places["query"].read_bytes())
        (folder / label / f"{name} damaged.png").write_bytes(b"no image")
    built = succeed("index", "build", folder, "--model", places["model"], "--out", places["out"])
    found = succeed("search", places["out"], folder / name / f"{name}.png")
    measured = succeed(
        "evaluate", places["out"], "--queries", folder, "--per-class", "--html", places["here"] / "a.html"
    )
    for text in (built.err, found.out, measured.out, measured.err):
        assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(text)
    assert f"{shown}/{shown} damaged.png: not an image" in built.err


def test_a_real_terminal_is_seen_as_one() -> None:
    parent, child = pty.openpty()
    code = r"from indistill.cli.stdout import emit; emit('\x1b]0;owned\x07')"
    subprocess.run([sys.executable, "-c", code], stdout=child, env=make_environment(), check=True)
    assert os.read(parent, 100) == b"\\x1b]0;owned\\x07\r\n"
    os.close(parent)
    os.close(child)
