"""What is said on standard error while something takes time."""

import time
from pathlib import Path

import pytest

from indistill import progress
from indistill.curriculum.phases import Phase
from indistill.progress import show_status
from indistill.training.loop import Record
from indistill.training.monitor import TrainingMonitor


def test_a_status_is_shown_on_a_terminal_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_status("loading"):
        pass
    assert "loading" in capsys.readouterr().err


def test_a_status_is_a_line_elsewhere_if_it_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with show_status("loading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    with show_status("loading"):
        time.sleep(0.5)
    assert capsys.readouterr().err == "loading ...\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_each_epoch_leaves_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    record: Record = {"epoch": 1, "phase": "stage 1", "loss": 0.25, "images_per_s": 1234.0}
    with TrainingMonitor((Phase("stage 1", "stage", 1, 2, 0.1),), 5, tmp_path / "metrics.jsonl") as monitor:
        monitor.report_epoch(record)
    assert "epoch 1/2  stage 1  loss 0.25  1,234 images/s\n" in capsys.readouterr().err
