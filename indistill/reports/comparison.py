"""Runs side by side: groups of runs that differ in their seed alone, their spread, and paired differences."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indistill.errors import InputError
from indistill.run_folder import Run

CONFIDENCE = 0.95
SHORT_HASH = 8
# What does not make a configuration another one; the alignment is measured, and random channels depend on the seed.
UNCOMPARED = ("format", "seed", "device", "alignment")
SHAPES = (".narrowing.tensors", ".narrowing.sizes")  # uncompared too: many, and told apart by width and parameters
# What follows from other keys as a rule, and is named only where those tell no difference.
CONSEQUENCES = (
    "schedule",
    "pairs",
    "parameters",
    "version",
    "network.embedding",
    "teacher.embedding",
    "auxiliary.embedding",
    "auxiliary.parameters",
    "auxiliary.schedule",
)
CONSEQUENCES_BELOW = ("network.arguments.", "teacher.arguments.", "teacher.parameters", "auxiliary.arguments.")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed.

    Attributes:
        name: how its configuration differs from the others'.
        runs: in ascending order of the seeds.
    """

    name: str
    runs: dict[int, Run]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample, None for a single value) of some values."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """Paired difference of two groups over their common seeds, with the bounds of its t interval.

    `std`, `low` and `high` are None where there is one common seed alone.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Returns the groups, in the order of their first runs.

    Raises:
        InputError: two runs have the same configuration and seed.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in runs:
        key = json.dumps(flatten_config(run.config), sort_keys=True)
        seed = int(run.config["seed"])
        older = found.setdefault(key, {}).setdefault(seed, run)
        if older is not run:
            raise InputError(
                f"{older.folder} and {run.folder} have the same configuration and seed {seed}: leave one out"
            )
    members = [dict(sorted(group.items())) for group in found.values()]
    names = name_configs([flatten_config(next(iter(group.values())).config) for group in members])
    return [Group(name, group) for name, group in zip(names, members, strict=True)]


def flatten_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the values of a run's config.yaml that make it the configuration that it is, as text, by dotted key.

    Keys of the recipe have no prefix, and `epochs` is the schedule's total. The teacher is known by the hash of its
    weights, wherever they lie.
    """
    values = dict(_flatten("", {name: value for name, value in config.items() if name not in UNCOMPARED}))
    values["epochs"] = str(sum(phase["epochs"] for phase in config["schedule"]))
    if values.get("start") == values["network.spec"]:  # random weights; the first runs do not say where they started
        values.pop("start")
    if "teacher.weights_sha256" in values:
        values.pop("teacher.source")
        values.pop("teacher.weights", None)
    return {
        key.removeprefix("recipe."): value
        for key, value in values.items()
        if not any(shapes in key for shapes in SHAPES)
    }


def name_configs(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns a name for each configuration, which says where it differs from the others.

    Keys that follow from others, such as the schedule, are named where the others do not tell all configurations
    apart. A single configuration has the name of its network.
    """
    if len(configs) == 1:
        return [configs[0]["network.spec"]]
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    chosen = [key for key in differing if key not in CONSEQUENCES and not key.startswith(CONSEQUENCES_BELOW)]
    for candidates, shorten in ((chosen, True), (differing, True), (differing, False)):
        names = [_name_config(config, candidates, shorten=shorten) for config in configs]
        if all(names) and len(set(names)) == len(names):
            break
    return names


def find_group(groups: Sequence[Group], name: str | None) -> Group:
    """Returns the group of a name, or the first one.

    Raises:
        InputError: there is no such group.
    """
    for group in groups:
        if name is None or name in (group.name, *(str(run.folder) for run in group.runs.values())):
            return group
    known = "; ".join(group.name for group in groups)
    raise InputError(f"--baseline '{name}' is neither the name of a group nor one of the runs; the groups are: {known}")


def summarise(values: Iterable[float]) -> Spread:
    """Returns the spread of one value or more."""
    array = np.array(list(values), dtype=np.float64)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None, len(array))


def pair_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Returns the difference of values by seed to those of a baseline, or None without a common seed.

    The interval is Student's for paired samples, with a confidence of 95 %: it supposes that the differences are
    normal, and says little for two or three seeds.
    """
    from scipy.stats import t

    common = sorted(set(values) & set(baseline))
    if not common:
        return None
    spread = summarise(values[seed] - baseline[seed] for seed in common)
    if spread.std is None:
        return Difference(spread.mean, None, None, None, 1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, spread.count - 1)) * spread.std / math.sqrt(spread.count)
    return Difference(spread.mean, spread.std, spread.mean - half, spread.mean + half, spread.count)


def compare_groups(
    groups: Sequence[Group], figures: Mapping[Path, Mapping[str, float]], baseline: Group
) -> list[dict[str, Any]]:
    """Returns, for each group, its name, its runs by seed, the spread of each figure that all of its runs have, and
    the paired difference of each to the baseline's, which itself has none.

    Args:
        groups: of runs.
        figures: of each run, by its folder and by name.
        baseline: one of the groups.
    """
    by_seed = {group.name: {seed: figures[run.folder] for seed, run in group.runs.items()} for group in groups}
    shared = {
        name: [key for key in next(iter(runs.values())) if all(key in values for values in runs.values())]
        for name, runs in by_seed.items()
    }

    def select(name: str, key: str) -> dict[int, float]:
        return {seed: values[key] for seed, values in by_seed[name].items()}

    described = []
    for group in groups:
        keys = shared[group.name]
        common = [key for key in keys if key in shared[baseline.name]] if group is not baseline else []
        differences = {key: pair_difference(select(group.name, key), select(baseline.name, key)) for key in common}
        described.append(
            {
                "name": group.name,
                "runs": {str(seed): str(run.folder) for seed, run in group.runs.items()},
                "figures": {key: asdict(summarise(select(group.name, key).values())) for key in keys},
                "differences": {key: asdict(found) if found else None for key, found in differences.items()},
            }
        )
    return described


def _flatten(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [item for name, inner in value.items() for item in _flatten(f"{prefix}.{name}".lstrip("."), inner)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, sort_keys=True))]


def _name_config(config: Mapping[str, str], keys: Sequence[str], *, shorten: bool) -> str:
    parts = []
    for key in keys:
        if key in config:
            value = _shorten(key, config[key]) if shorten else config[key]
            parts.append(f"{key}={value}")
    return ", ".join(parts)


def _shorten(key: str, value: str) -> str:
    if key.endswith("sha256"):
        return value[:SHORT_HASH]
    return Path(value).name if value.startswith("/") else value
