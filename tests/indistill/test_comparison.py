import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from indistill.errors import InputError
from indistill.reports.comparison import Group, compare_groups, find_group, group_runs, pair_difference, summarise
from indistill.run_folder import Run

CONFIG: dict[str, Any] = {
    "command": "compress",
    "version": "0.1.0",
    "network": {"spec": "paper:cnn-s", "arguments": {"image_size": 32}, "embedding": "embedding"},
    "start": "paper:cnn-s",
    "parameters": 15050,
    "data": "/data/train",
    "seed": 0,
    "device": "cpu",
    "recipe": {"loss": {"name": "pkt", "scale": 1000.0}, "optimiser": {"lr": 0.001}},
    "schedule": [{"name": "embedding", "epochs": 3, "lr": 0.001}],
    "teacher": {
        "spec": "paper:cnn-a",
        "arguments": {"image_size": 32},
        "embedding": "embedding",
        "source": "/runs/teacher",
        "parameters": 57994,
        "weights": "/runs/teacher/model.safetensors",
        "weights_sha256": "ab" * 32,
    },
    "pairs": [],
}


def describe_narrowing(width: float) -> dict[str, Any]:
    """Returns a narrowed network's part of the config."""
    channels = int(64 * width)
    sizes = {"conv1.out_channels": channels}
    return {"width": width, "from_scratch": False, "tensors": {"conv1.weight": f"{channels}x3x3x3"}, "sizes": sizes}


def make_run(name: str, seed: int = 0, **changes: object) -> Run:
    """Returns a run whose config differs by the values of dotted keys, with `__` for the dot."""
    config = copy.deepcopy(CONFIG) | {"seed": seed}
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    return Run(Path(name), config, Path(name, "student.safetensors"))


def name_groups(*runs: Run) -> list[str]:
    return [group.name for group in group_runs(runs)]


def test_runs_that_differ_in_their_seed_are_one_group() -> None:
    groups = group_runs(
        [
            make_run("b", 2),
            make_run("rkd", 0, recipe__loss__name="rkd"),
            make_run("a", 0, device="cuda:0"),
            make_run("moved", 1, teacher__weights="/elsewhere/w.pt", teacher__source="/elsewhere"),
        ]
    )
    assert [(group.name, list(group.runs)) for group in groups] == [
        ("loss.name=pkt", [0, 1, 2]),
        ("loss.name=rkd", [0]),
    ]


def test_the_measured_alignment_makes_no_other_group() -> None:
    rows = [[{"teacher": "conv1", "student": "conv1", "kept": 8, "energy": energy}] for energy in (0.45, 0.53, 0.61)]
    criteria = ("random", "random", "l1")
    runs = [
        make_run(f"{seed}", seed, recipe__targets={"criterion": criterion, "alignment": "prune"}, alignment=row)
        for seed, (criterion, row) in enumerate(zip(criteria, rows, strict=True))
    ]
    assert [(group.name, list(group.runs)) for group in group_runs(runs)] == [
        ("targets.criterion=random", [0, 1]),
        ("targets.criterion=l1", [2]),
    ]


def test_narrowed_students_are_named_by_their_width_alone() -> None:
    runs = [
        make_run(
            f"{width}",
            start=f"width:{width}",
            parameters=int(1e4 * width),
            network__narrowing=describe_narrowing(width),
        )
        for width in (0.5, 0.25)
    ]
    assert name_groups(*runs) == [
        "network.narrowing.width=0.5, start=width:0.5",
        "network.narrowing.width=0.25, start=width:0.25",
    ]


def test_narrowed_teachers_and_auxiliaries_are_named_by_their_width_alone() -> None:
    auxiliary = {"spec": "paper:cnn-a", "arguments": {}, "embedding": "embedding", "start": "paper:cnn-a"}
    rest = {"parameters": 5, "schedule": [{"name": "auxiliary", "epochs": 3}]}
    teachers = [make_run(f"{width}", teacher__narrowing=describe_narrowing(width)) for width in (0.5, 0.25)]
    auxiliaries = [
        make_run(f"{width}", auxiliary=auxiliary | rest | {"narrowing": describe_narrowing(width), "parameters": count})
        for width, count in ((0.5, 5), (0.25, 2))
    ]
    assert name_groups(*teachers) == ["teacher.narrowing.width=0.5", "teacher.narrowing.width=0.25"]
    assert name_groups(*auxiliaries) == ["auxiliary.narrowing.width=0.5", "auxiliary.narrowing.width=0.25"]


def test_shapes_of_the_same_width_are_told_apart_by_the_parameters() -> None:
    narrowing = describe_narrowing(0.5)
    again = narrowing | {"tensors": {"conv1.weight": "16x3x3x3"}}  # a narrowed teacher made narrower
    runs = [make_run("a", network__narrowing=narrowing), make_run("b", network__narrowing=again, parameters=3)]
    assert name_groups(*runs) == ["parameters=15050", "parameters=3"]


def test_two_runs_of_one_configuration_and_seed_are_refused() -> None:
    with pytest.raises(InputError, match="a and b have the same configuration and seed 3: leave one out"):
        group_runs([make_run("a", 3), make_run("b", 3)])


def test_a_group_is_named_by_all_that_differs() -> None:
    assert name_groups(make_run("a")) == ["paper:cnn-s"]
    assert name_groups(
        make_run("a"), make_run("b", recipe__loss__scale=1.0, recipe__optimiser__lr=0.1, parameters=3)
    ) == ["loss.scale=1000.0, optimiser.lr=0.001", "loss.scale=1.0, optimiser.lr=0.1"]
    assert name_groups(make_run("a"), make_run("b", teacher__weights_sha256="cd" * 32)) == [
        "teacher.weights_sha256=abababab",
        "teacher.weights_sha256=cdcdcdcd",
    ]


def test_the_length_of_the_schedule_is_named() -> None:
    longer = [{"name": "embedding", "epochs": 30, "lr": 0.001}]
    assert name_groups(make_run("a"), make_run("b", schedule=longer)) == ["epochs=3", "epochs=30"]


def test_what_follows_from_other_keys_is_named_where_nothing_else_differs() -> None:
    assert name_groups(make_run("a"), make_run("b", pairs=["conv1:conv1"])) == ["pairs=[]", 'pairs=["conv1:conv1"]']


def test_names_that_are_the_same_when_shortened_are_given_in_full() -> None:
    names = name_groups(make_run("a", data="/x/train"), make_run("b", data="/y/train"))
    assert names == ["data=/x/train", "data=/y/train"]
    assert name_groups(make_run("a", data="/x/one"), make_run("b", data="/y/two")) == ["data=one", "data=two"]


def test_the_spread_by_hand() -> None:
    spread = summarise([1, 2, 6])
    assert (spread.mean, spread.std, spread.count) == (3, pytest.approx(math.sqrt(7)), 3)
    assert summarise([5]).std is None


def test_paired_differences_by_hand() -> None:
    # Seeds 1, 2, 3 are common; differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027.
    found = pair_difference({1: 11, 2: 22, 3: 33, 4: 99}, {3: 30, 2: 20, 1: 10, 9: 0})
    assert found is not None
    assert (found.mean, found.std, found.count) == (2, 1, 3)
    assert found.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 6))
    found = pair_difference(dict(enumerate(first)), dict(enumerate(second)))
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_one_common_seed_has_no_interval_and_none_no_difference() -> None:
    found = pair_difference({1: 3.0, 2: 5.0}, {2: 4.0})
    assert found is not None
    assert (found.mean, found.std, found.low, found.high, found.count) == (1, None, None, None, 1)
    assert pair_difference({1: 3.0}, {2: 4.0}) is None


def test_groups_are_compared_with_the_baseline_on_the_figures_that_all_their_runs_have() -> None:
    runs = [make_run("a", 0), make_run("b", 1), make_run("c", 0, data="x"), make_run("d", 1, data="x")]
    figures = {
        Path("a"): {"map": 0.5, "loss": 1.0},
        Path("b"): {"map": 0.7},
        Path("c"): {"map": 0.6, "loss": 2.0},
        Path("d"): {"map": 0.8, "loss": 4.0},
    }
    groups = group_runs(runs)
    first, second = compare_groups(groups, figures, groups[0])
    assert first["differences"] == {}
    assert first["figures"].keys() == {"map"}
    assert first["runs"] == {"0": "a", "1": "b"}
    assert second["figures"]["loss"]["mean"] == 3
    assert second["differences"].keys() == {"map"}
    assert second["differences"]["map"]["mean"] == pytest.approx(0.1)


def test_the_baseline_is_a_groups_name_or_a_run_of_it() -> None:
    groups = [Group("x=1", {0: make_run("a")}), Group("x=2", {0: make_run("b")})]
    assert find_group(groups, None) is groups[0]
    assert find_group(groups, "x=2") is groups[1]
    assert find_group(groups, "b") is groups[1]
    with pytest.raises(InputError, match=r"--baseline 'z' is neither .* the groups are: x=1; x=2"):
        find_group(groups, "z")
