"""`compress` with each loss of the embedding stage."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml
from safetensors.torch import load_file

from indistill.losses.options import LossName
from indistill.models.paper import build_cnn_s
from indistill.run_folder import read_metrics
from tests.cli.calls import fill, succeed

Places = dict[str, Path]
Refuse = Callable[..., None]

COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --recipe digits --out {out}"
LABELLED, UNLABELLED = f"{COMPRESS} --data {{gallery}}", f"{COMPRESS} --data {{loose}}"


def check_run(places: Places, epochs: int) -> dict:
    """Fails unless a run is whole, its losses are finite and its weights are those of the student alone."""
    assert [0 <= record["loss"] < 1e6 for record in read_metrics(places["out"] / "metrics.jsonl")] == [True] * epochs
    assert set(load_file(places["out"] / "student.safetensors")) == set(build_cnn_s().state_dict())
    recipe: dict = yaml.safe_load((places["out"] / "config.yaml").read_text(encoding="utf-8"))["recipe"]
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("name", get_args(LossName))
def test_every_loss_trains_a_student_without_labels(places: Places, name: str) -> None:
    succeed(*fill(f"{UNLABELLED} --loss {name} --no-warm-up --epochs 2", places))
    assert check_run(places, 2)["loss"]["name"] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross-entropy", "triplet", "multi-similarity", "supcon"])
def test_every_supervised_loss_trains_beside_the_distillation(places: Places, name: str) -> None:
    succeed(*fill(f"{LABELLED} --no-warm-up --epochs 2 --set loss.supervised={name}", places))
    assert check_run(places, 2)["loss"]["supervised"] == name


def test_cross_entropy_needs_a_logit_for_each_class(refuse: Refuse) -> None:
    line = LABELLED.replace("paper:cnn-s", "paper:cnn-s?num_classes=7") + " --set loss.supervised=cross-entropy"
    refuse(line, "needs a logit for each class, and the student gives 7, the data has 5 classes", "?num_classes=5")


@pytest.mark.slow
def test_stages_are_aligned_by_a_regressor(places: Places) -> None:
    succeed(*fill(f"{UNLABELLED} --epochs 5 --set targets.alignment=regressor", places))
    assert check_run(places, 5)["targets"]["alignment"] == "regressor"


@pytest.mark.slow
def test_the_loss_of_a_recipe_is_kept_unless_another_is_named(places: Places) -> None:
    (places["here"] / "mine.yaml").write_text("data: {image_size: 32}\nloss: {name: sp}\n", encoding="utf-8")
    line = UNLABELLED.replace("digits", "{here}/mine.yaml") + " --no-warm-up --epochs 2"
    succeed(*fill(line, places))
    assert check_run(places, 2)["loss"]["name"] == "sp"
    succeed(*fill(f"{line} --overwrite --loss rkd", places))
    assert check_run(places, 2)["loss"]["name"] == "rkd"


def test_faithful_is_unscaled_pkt(places: Places) -> None:
    succeed(*fill(f"{UNLABELLED} --faithful --epochs 5", places))
    loss = check_run(places, 5)["loss"]
    assert (loss["name"], loss["scale"], loss["weight"]) == ("pkt", 1, 1)
    assert read_metrics(places["out"] / "metrics.jsonl")[-1]["loss"] < 0.2  # a mean over pairs is tiny


def test_pkth_reads_stages_that_are_named_even_without_a_warm_up(places: Places) -> None:
    pair = "--pair stage2:stage1"
    succeed(*fill(f"{UNLABELLED} --loss pkth --no-warm-up --epochs 2 {pair}", places))
    config = yaml.safe_load((places["out"] / "config.yaml").read_text(encoding="utf-8"))
    assert config["pairs"] == ["stage2:stage1"]
    assert [phase["objective"] for phase in config["schedule"]] == ["embedding", "embedding"]


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_logits_of_another_width_are_refused(refuse: Refuse, name: str) -> None:
    line = UNLABELLED.replace("paper:cnn-s", "paper:cnn-s?num_classes=7")
    refuse(
        f"{line} --loss {name}", f"loss '{name}' needs the same classes", "teacher has 10", "student 7", "--loss pkt"
    )


def test_a_supervised_loss_without_labels_is_refused(refuse: Refuse) -> None:
    line = f"{UNLABELLED} --set loss.supervised=triplet"
    refuse(line, "has no classes; loss.supervised=triplet needs a sub-folder for each of two or more classes")


def test_a_temperature_is_refused_where_there_is_none(refuse: Refuse) -> None:
    refuse(f"{UNLABELLED} --loss hint --set loss.temperature=2", "loss.temperature: loss 'hint' has none (kd, dkd,")
