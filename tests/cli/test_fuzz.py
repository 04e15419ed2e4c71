"""A few attempts of each fuzz target for texts, the same at each run; `python -m benchmarks.fuzz` makes many."""

import os
from pathlib import Path

import pytest

from benchmarks.fuzz.__main__ import Outcome, load_target, run_target, tabulate, try_once
from benchmarks.fuzz.workspace import VARIABLE

ATTEMPTS = {"recipes": 40, "manifests": 60, "conditions": 60, "specs": 25, "documents": 10, "options": 4}
SELF_TEST = """
import os
from indistill.errors import InputError
def attempt(random, folder):
    kind = random.randrange(4)
    if kind == 0:
        raise InputError("what is expected")
    if kind == 1:
        raise KeyError("a defect")
    if kind == 2:
        os.kill(os.getpid(), 11)
    (folder / "trace").touch()
"""


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
def test_attempts_end_well_or_in_one_line(
    workspace: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(VARIABLE, str(workspace["run"].parent))
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    target = load_target(name)
    for seed in range(ATTEMPTS[name]):
        try_once(target, name, seed, tmp_path / str(seed))
    for key, value in before.items():
        monkeypatch.setenv(key, value)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_crash_and_an_error_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "selftest.py").write_text(SELF_TEST, encoding="utf-8")
    monkeypatch.setattr("benchmarks.fuzz.targets.__path__", [str(tmp_path)])
    outcome = run_target("selftest", 1, 6, 3, tmp_path / "kept")
    assert outcome.attempts == 6
    assert sorted(place.partition(" at ")[0] for place in outcome.findings) == ["KeyError", "ended by SIGSEGV"]
    assert len(list((tmp_path / "kept").glob("selftest-*/finding.json"))) == 2
    assert "python -m benchmarks.fuzz --attempts 1 --target selftest --seed" in next(
        (tmp_path / "kept").glob("*/finding.json")
    ).read_text(encoding="utf-8")
    assert tabulate([Outcome("a", 1000, 1.5)]).splitlines()[-1] == "| a | 1,000 | 1.5 | 0 |"
