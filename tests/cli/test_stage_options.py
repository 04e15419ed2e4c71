"""`compress` with stages that are found by themselves: --dry-run, --strict, --criterion."""

from pathlib import Path

import pytest
import yaml

from tests.cli.calls import assert_refused, fill, run_cli, snapshot, succeed

Places = dict[str, Path]
COMPRESS = "compress --data {loose} --recipe digits --epochs 1 --out {out}"


def test_a_dry_run_shows_pairs_and_schedule_and_writes_nothing(places: Places) -> None:
    result = succeed(*fill(f"{COMPRESS} --teacher {{teacher}} --student paper:cnn-s --dry-run", places))
    assert result.out == ""
    assert "stage3:stage3" in result.err
    assert "32 of 64" in result.err
    assert "embedding, final" in result.err
    assert snapshot(places["here"]) == {}


def test_fewer_epochs_than_phases_are_said_to_be_more(places: Places) -> None:
    line = f"{COMPRESS} --teacher {{teacher}} --student paper:cnn-s --dry-run"
    assert "not the 2 of --epochs: each phase has one at least" in succeed(*fill(line, places), "--epochs", 2).err
    assert "of --epochs" not in succeed(*fill(line, places), "--epochs", 40).err


@pytest.mark.slow
def test_stages_are_found_and_the_run_says_what_was_kept(places: Places) -> None:
    line = f"{COMPRESS} --teacher timm:test_resnet --student timm:test_efficientnet --image-size 64 --criterion random"
    result = succeed(*fill(line, places))
    config = yaml.safe_load((places["out"] / "config.yaml").read_text())
    assert config["pairs"][:2] == ["act1:blocks.0", "layer1:blocks.1"]
    assert config["recipe"]["targets"]["criterion"] == "random"
    row = config["alignment"][1]
    assert (row["teacher_width"], row["student_width"], row["kept"], row["teacher_side"]) == (32, 24, 24, 16)
    assert 0 < row["energy"] < 1
    assert f"{100 * row['energy']:.1f} %" in result.err
    assert "is skipped; --pair TEACHER:STUDENT names others" in result.err


def test_strict_refuses_what_is_skipped_else(places: Places) -> None:
    line = f"{COMPRESS} --teacher timm:test_resnet --student timm:test_efficientnet --image-size 64 --strict"
    assert_refused(run_cli(*fill(line, places)), "fewer than the student's", "use a narrower student")
    assert snapshot(places["here"]) == {}


@pytest.mark.parametrize("criterion", ["taylor", "fpgm"])
def test_a_criterion_is_of_the_recipe_too(places: Places, criterion: str) -> None:
    options = f"--teacher {{teacher}} --student paper:cnn-s --set targets.criterion={criterion} --dry-run"
    assert "16 of 32" in succeed(*fill(f"{COMPRESS} {options}", places)).err
