"""What Ctrl-C says of a run, and in the demo."""

from pathlib import Path

import pytest

from indistill.cli import walk
from indistill.cli.commands.demo import demo
from indistill.cli.interruption import explain_run


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ([], "nothing was written"),
        (["config.yaml"], "the run {out} is as it was: --resume goes on"),
        (["config.yaml", "student.safetensors"], "nothing was written"),
    ],
    ids=["no run", "one that was cut off", "a complete one"],
)
def test_a_run_that_was_not_touched_is_as_it_was(tmp_path: Path, files: list[str], note: str) -> None:
    for name in files:
        (tmp_path / name).touch()

    @explain_run
    def train(out: Path, devices: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train(out=tmp_path, devices=1)
    assert caught.value.__notes__ == [note.format(out=tmp_path)]


def test_the_demo_names_an_option_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*given: object) -> None:
        error = KeyboardInterrupt()
        error.add_note("the same command with --resume goes on from epoch 2")
        raise error

    monkeypatch.setattr(walk, "walk_digits", train)
    with pytest.raises(KeyboardInterrupt) as caught:
        demo(out=tmp_path / "demo-out")
    assert caught.value.__notes__ == ["the same command with --overwrite begins again"]
