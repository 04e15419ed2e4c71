"""Shells complete commands, options and values, and the process that answers them loads nothing heavy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.calls import MAIN, make_environment
from tests.cli.test_light_imports import REPORT

HEAVY = "IMPORTED\n"


def ask(line: str, code: str = REPORT) -> tuple[list[str], str]:
    """Returns what completes the last word of a line in bash, and what the process said."""
    environment = make_environment() | {
        "_INDISTILL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("indistill se", ["search", "serve"]),
        ("indistill index re", ["rebuild", "remove"]),
        ("indistill search --ov", ["--overwrite"]),
        ("indistill compress --loss pkt", ["pkt", "pkt-eccv", "pkth"]),
        ("indistill compress --recipe cifar", ["cifar10", "cifar100"]),
        ("indistill export --precision i", ["int8"]),
        ("indistill doctor --t", ["--test"]),
    ],
)
def test_words_are_completed_without_anything_heavy(line: str, answers: list[str]) -> None:
    found, said = ask(line)
    assert sorted(found) == answers
    assert said == HEAVY


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_the_script_works_in_the_shell_itself(shell: str, tmp_path: Path) -> None:
    """bash and fish are asked to complete a line; zsh takes the script in, as only a terminal can ask it."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    command = tmp_path / "indistill"
    command.write_text(f"#!{sys.executable}\n{MAIN}\n")
    command.chmod(0o755)
    environment = make_environment() | {"HOME": str(tmp_path)}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    asked = environment | {"_INDISTILL_COMPLETE": f"source_{shell}"}  # --show-completion looks which shell calls it
    script = subprocess.run([command], env=asked, capture_output=True, text=True, timeout=120, check=True).stdout
    (tmp_path / "script").write_text(script)
    lines = {
        "bash": f"source {tmp_path}/script; COMP_WORDS=(indistill se); COMP_CWORD=1; _indistill_completion indistill; "
        'printf "%s\\n" "${COMPREPLY[@]}"',
        "fish": f"source {tmp_path}/script; complete -C 'indistill se'",
        "zsh": f"autoload -Uz compinit && compinit -u && source {tmp_path}/script && echo $_comps[indistill]",
    }
    done = subprocess.run(
        [shell, "-c", lines[shell]], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    expected = {"_indistill_completion"} if shell == "zsh" else {"search", "serve"}
    assert expected <= set(done.stdout.split()), done.stderr
