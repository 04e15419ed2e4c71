"""What `evaluate` prints: tables in percent, or JSON with fractions of 1."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from indistill.cli.evaluation import Conduct, Measurement, are_paired
from indistill.cli.output import print_json, print_table
from indistill.cli.stdout import emit
from indistill.files.formats import EVALUATION_REPORT
from indistill.retrieval.evaluation.intervals import LEVEL, RESAMPLES, SEED, Estimate, estimate_means
from indistill.retrieval.evaluation.metrics import JUNK, Figures, QueryFigures
from indistill.talk import say

Table = tuple[list[str], list[list[str]]]

TIES_SHOWN = 1e-4  # width of the bounds above which they are printed
DENOMINATOR = "all relevant images of the gallery (R), also those that were not returned"
CLASS_METRICS = ("map", "r_precision")
INTERVAL = f"{100 * LEVEL:.0f} %"


def print_measurements(
    measurements: Sequence[Measurement], conduct: Conduct, *, per_class: bool, as_json: bool
) -> None:
    """Prints the measurements, the first in full and the others beside it."""
    first = measurements[0]
    if as_json:
        print_json(describe_measurements(measurements, conduct, per_class=per_class))
        return
    for number, (title, table) in enumerate(tabulate_all(measurements, per_class=per_class).items()):
        if number:
            emit(f"\n{title}")
        print_table(*table)
    say(describe_queries(first, conduct))


def tabulate_all(measurements: Sequence[Measurement], *, per_class: bool) -> dict[str, Table]:
    """Returns the tables by their titles, in the order in which they are shown."""
    first = measurements[0]
    tables = {"The whole ranking by exact search": tabulate_exact(first)}
    if first.deployed is not None:
        tables[describe_index(first)] = tabulate_deployed(first)
    if len(measurements) > 1:
        tables["Side by side, by cosine; differences to the first"] = tabulate_side_by_side(measurements)
    if per_class:
        tables["By class, by cosine; the worst first"] = tabulate_classes(first)
    return tables


def tabulate_exact(measurement: Measurement) -> Table:
    """Returns the metrics with their intervals, what chance gives, and the bounds of other orders of equal scores.

    The bounds stand where they are wide. Metrics with the same figures, as those of unit vectors, share two columns.
    """
    exact = measurement.exact["cosine"]
    labels = ["percent", *exact.names]
    if "map" in exact.names:
        labels[2:2] = ["map, by chance"]
    ties = {metric: measure_ties(figures) for metric, figures in measurement.exact.items()}
    if any(ties.values()):
        labels[2:2] = ["map, worst and best order of ties"]
    columns: dict[str, list[tuple[str, str]]] = {}
    for metric, figures in measurement.exact.items():
        estimates = estimate_means(exact.names, figures.values)
        cells = {name: (_show(estimates[name].mean), _show_range(estimates[name])) for name in exact.names}
        cells["map, by chance"] = _show(float(measurement.task.expect_by_chance()[figures.queries].mean())), ""
        bounds = ties[metric]
        cells["map, worst and best order of ties"] = "", _show_bounds(bounds) if bounds else ""
        columns[metric] = [cells[label] for label in labels[1:]]
    if len(columns) > 1 and columns["cosine"] == columns["euclidean"]:
        columns = {"cosine = euclidean": columns["cosine"]}
    header = [labels[0], *(text for metric in columns for text in (metric, INTERVAL))]
    rows = [
        [label, *(text for cells in columns.values() for text in cells[row])] for row, label in enumerate(labels[1:])
    ]
    return header, rows


def tabulate_deployed(measurement: Measurement) -> Table:
    """Returns the metrics of what the index returned, beside those of exact search in the same vectors."""
    returned, exact, difference, recall = estimate_deployed(measurement)
    header = ["percent", "returned", INTERVAL, "exact search", "difference", INTERVAL]
    rows = [
        [
            name,
            _show(returned[name].mean),
            _show_range(returned[name]),
            _show(exact[name].mean),
            _show_signed(difference[name].mean),
            _show_range(difference[name], signed=True),
        ]
        for name in returned
    ]
    for name, found in recall.items():
        rows.append([name, _show(found.mean), _show_range(found), "", "", ""])
    return header, rows


def tabulate_side_by_side(measurements: Sequence[Measurement]) -> Table:
    """Returns the metrics of all, and how each differs from the first."""
    first, others = measurements[0], measurements[1:]
    header = ["percent", first.subject.name]
    for other in others:
        header += [other.subject.name, "difference", INTERVAL]
    names = list(compare_columns(first))
    columns = [[_show(float(np.nanmean(compare_columns(first)[name]))) for name in names]]
    for other in others:
        values, differences = compare_columns(other), estimate_differences(first, other)
        columns.append([_show(float(np.nanmean(values[name]))) if name in values else "" for name in names])
        columns.append([_show_signed(differences[name].mean) if name in differences else "" for name in names])
        columns.append([_show_range(differences[name], signed=True) if name in differences else "" for name in names])
    return header, [[name, *(column[row] for column in columns)] for row, name in enumerate(names)]


def tabulate_classes(measurement: Measurement) -> Table:
    """Returns the metrics of each class's queries."""
    classes = measure_classes(measurement)
    names = [name for name in next(iter(classes.values())) if name not in ("queries", "gallery")]
    order = sorted(classes, key=lambda label: (classes[label]["map"], label))
    rows = [
        [
            label,
            f"{classes[label]['queries']:,}",
            f"{classes[label]['gallery']:,}",
            *(_show(classes[label][name]) for name in names),
        ]
        for label in order
    ]
    return ["percent", "queries", "gallery", *names], rows


def measure_ties(figures: QueryFigures) -> tuple[float, float] | None:
    """Returns `map` where equal scores stand in the worst and in the best order; None where both are about the same."""
    worst, best = float(figures.worst.mean()), float(figures.best.mean())
    return (worst, best) if best - worst > TIES_SHOWN else None


def estimate_deployed(
    measurement: Measurement,
) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, Estimate], dict[str, Estimate]]:
    """Returns the estimates of what was returned, of exact search, of the difference, and of the search's recall."""
    deployed, exact, depth = measurement.deployed, measurement.exact["cosine"], measurement.depth
    assert deployed is not None
    names = list(deployed.figures.names)
    returned = deployed.figures.values
    expected = np.column_stack([exact.read(name) for name in names])
    if "map" in names:
        names.insert(1, f"map of the first {depth}")
        returned = np.insert(returned, 1, deployed.figures.read("map"), axis=1)
        expected = np.insert(expected, 1, exact.cut, axis=1)
    recall_names = [f"search recall@{k}" for k in deployed.ks]
    return (
        estimate_means(names, returned),
        estimate_means(names, expected),
        estimate_means(names, returned - expected),
        estimate_means(recall_names, deployed.search_recall),
    )


def compare_columns(measurement: Measurement) -> dict[str, Figures]:
    """Returns the figures of each query by cosine, (E,), by name; those of an index with what it returned too."""
    exact = measurement.exact["cosine"]
    columns: dict[str, Figures] = {}
    if measurement.deployed is not None:
        figures = measurement.deployed.figures
        columns = {f"{name}, returned": figures.read(name) for name in figures.names if name.startswith("map")}
    return columns | {name: exact.read(name) for name in exact.names}


def estimate_differences(first: Measurement, other: Measurement) -> dict[str, Estimate]:
    """Returns how another differs from the first, query by query; without bounds where the queries are others."""
    ours, theirs = compare_columns(first), compare_columns(other)
    names = [name for name in ours if name in theirs]
    if are_paired(first, other):
        return estimate_means(names, np.column_stack([theirs[name] - ours[name] for name in names]))
    means = {name: float(np.nanmean(theirs[name]) - np.nanmean(ours[name])) for name in names}
    return {name: Estimate(mean, math.nan, math.nan) for name, mean in means.items()}


def measure_classes(measurement: Measurement) -> dict[str, dict[str, Any]]:
    """Returns by class the number of its queries and gallery images, and its metrics by cosine."""
    task, figures = measurement.task, measurement.exact["cosine"]
    labels = np.array([str(measurement.subject.queries.labels[i]) for i in figures.queries.tolist()])
    sizes = dict(zip(*np.unique(task.gallery_labels, return_counts=True), strict=True))
    first_recall = next(name for name in figures.names if name.startswith("recall@"))
    found = {}
    for label in sorted(set(labels.tolist())):
        rows = np.flatnonzero(labels == label)
        number = int(task.query_labels[figures.queries[rows[0]]])
        found[label] = {"queries": len(rows), "gallery": int(sizes.get(number, 0)) if number >= 0 else 0} | {
            name: float(figures.read(name)[rows].mean()) for name in (*CLASS_METRICS, first_recall)
        }
    return found


def describe_index(measurement: Measurement) -> str:
    """Returns what was searched, and what the figures are divided by, in a line."""
    index = measurement.subject.index
    assert index is not None
    manifest = index.manifest
    parameters = ", ".join(f"{name} {value:g}" for name, value in manifest.parameters.items())
    return (
        f"As deployed: {manifest.factory}{f' ({parameters})' if parameters else ''}, {manifest.items:,} images, the "
        f"first {measurement.depth:,} for each query; map is divided by {DENOMINATOR}; model SHA-256 "
        f"{manifest.model_sha256[:12]}"
    )


def describe_queries(measurement: Measurement, conduct: Conduct) -> str:
    """Returns in a line how many queries there were, and what became of the others."""
    figures, empty = measurement.exact["cosine"], len(measurement.empty)
    count = len(figures.queries)
    queries = f"{count:,} {'query' if count == 1 else 'queries'}"
    became = "was skipped" if empty == 1 else "were skipped"
    if conduct.truth is not None:
        return f"{queries}; {empty:,} without ground truth {became}"
    if conduct.protocol.empty == "zero":
        became = "counts as zero" if empty == 1 else "count as zero"
    text = f"{queries}; {empty:,} without a match in the gallery {became}"
    if conduct.protocol.junk is not None:
        junk = int(np.count_nonzero(measurement.task.gallery_labels == JUNK))
        text += f"; {junk:,} images of the class '{conduct.protocol.junk}' are ignored"
    return text


def describe_measurements(measurements: Sequence[Measurement], conduct: Conduct, *, per_class: bool) -> dict[str, Any]:
    """Returns all figures, fractions of 1, as JSON holds them."""
    first = measurements[0]
    counted = conduct.truth is None and conduct.protocol.empty == "zero"
    described = {"schema_version": EVALUATION_REPORT.version} | _describe_one(first)
    described |= {
        "queries": len(first.exact["cosine"].queries),
        "skipped": 0 if counted else len(first.task.queries) - len(first.exact["cosine"].queries),
        "empty": len(first.empty),
        "protocol": asdict(conduct.protocol) | {"ground_truth": conduct.truth and str(conduct.truth)},
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }
    if per_class:
        described["per_class"] = measure_classes(first)
    if len(measurements) > 1:
        described["also"] = [
            {"name": other.subject.name}
            | _describe_one(other)
            | {"difference": _split(estimate_differences(first, other))}
            for other in measurements[1:]
        ]
    return described


def _describe_one(measurement: Measurement) -> dict[str, Any]:
    described: dict[str, Any] = {}
    intervals, ties = {}, {}
    for metric, figures in measurement.exact.items():
        estimates = _split(estimate_means(figures.names, figures.values))
        described[metric], intervals[metric] = estimates["mean"], estimates["interval"]
        ties[metric] = measure_ties(figures)
    described |= {"intervals": intervals, "tie_bounds": ties}
    if measurement.deployed is not None and measurement.subject.index is not None:
        manifest = measurement.subject.index.manifest
        parts = ("returned", "exact", "difference", "search_recall")
        described["deployed"] = {
            "index": measurement.subject.name,
            "type": manifest.factory,
            "parameters": manifest.parameters,
            "items": manifest.items,
            "generation": manifest.generation,
            "model_sha256": manifest.model_sha256,
            "depth": measurement.depth,
            "denominator": DENOMINATOR,
        } | {part: _split(found) for part, found in zip(parts, estimate_deployed(measurement), strict=True)}
    return described


def _split(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {
        "mean": {name: _number(found.mean) for name, found in estimates.items()},
        "interval": {name: [_number(found.low), _number(found.high)] for name, found in estimates.items()},
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _show(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _show_signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(100 * value, 2) + 0.0:+.2f}"


def _show_range(found: Estimate, *, signed: bool = False) -> str:
    show = _show_signed if signed else _show
    return "-" if math.isnan(found.low) else f"{show(found.low)} to {show(found.high)}"


def _show_bounds(bounds: tuple[float, float]) -> str:
    return f"{_show(bounds[0])} to {_show(bounds[1])}"
