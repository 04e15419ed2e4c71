"""Each recipe of a public data set trains a teacher and compresses it, on a miniature in the set's own file format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from indistill.cli.options import RecipeOption
from indistill.runs.config import list_recipes
from tests.cli.calls import succeed
from tests.miniatures import write_cifar10, write_cifar100, write_cub, write_fashionmnist, write_imagenet_archives

Writer = Callable[[Path, pytest.MonkeyPatch], object]
# Recipe: writer, data spec, options of the first call, what else keeps the test short.
CASES: dict[str, tuple[Writer, str, str, str]] = {
    "cifar10": (write_cifar10, "cifar10/train", "", ""),
    "cifar100": (write_cifar100, "cifar100/train", "", ""),
    "fashionmnist": (write_fashionmnist, "fashionmnist/train", "--download", ""),
    "imagenet": (
        lambda root, patch: write_imagenet_archives(root / "imagenet", patch),
        "imagenet/train",
        "--download",
        "--set data.memory_limit_gb=0",
    ),
    "cub200": (lambda root, _: write_cub(root), "cub200/train", "", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_trains_a_teacher_and_compresses_it(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, data, first, more = CASES[recipe]
    write(tmp_path, monkeypatch)
    shared = f"--data {data} --data-root {tmp_path} --recipe {recipe} --epochs 1 --device cpu {more}".split()
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    succeed("train", "--model", "paper:cnn-a", "--out", teacher, *shared, *first.split())
    warm_up = ["--set", "curriculum.first=0"]
    succeed("compress", "-t", teacher, "-s", "paper:cnn-s", "--out", student, *shared, *warm_up)
    config = yaml.safe_load((student / "config.yaml").read_text(encoding="utf-8"))
    assert (config["data"], len(config["pairs"])) == (data, 3)
    fingerprints = {
        json.loads((run / "environment.json").read_text(encoding="utf-8"))["data_fingerprint"]
        for run in (teacher, student)
    }
    assert len(fingerprints) == 1


def test_the_help_text_names_every_recipe() -> None:
    text = RecipeOption.__metadata__[0].help
    assert f"({', '.join(list_recipes())})" in text
