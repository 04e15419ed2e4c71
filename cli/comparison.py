"""What `compare` measures of each run: metrics, kept beside the run; parameters, size, latency, closeness."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indistill import __version__
from indistill.cli.bench_images import read_encoded
from indistill.cli.inputs import report_skipped
from indistill.data.pixels import Pixels, load_pixels
from indistill.data.sets import ArraySet, FolderSet, ImageSet, require_labels
from indistill.data.specs import open_images
from indistill.errors import DataError, InputError
from indistill.export.bench import Protocol, count_turns, run_bench
from indistill.export.bench_process import Engine
from indistill.files.documents import read_json
from indistill.files.formats import KEPT_EVALUATION
from indistill.files.hashing import hash_file
from indistill.preprocess import Preprocessing
from indistill.progress import show_progress
from indistill.reports.comparison import Group
from indistill.retrieval.evaluation.evaluate import METRICS, LabelledVectors, evaluate_retrieval
from indistill.run_documents import EVALUATION, is_document
from indistill.run_folder import Run, read_closeness, read_metrics, write_text
from indistill.talk import say

TIMED_IMAGES = 8
ROUNDS = 5
UNREADABLE = b"unreadable "  # in the fingerprint, in the place of an image


@dataclass(frozen=True)
class Evaluated:
    """The images that all runs are evaluated with, and the fingerprint of each set."""

    gallery: ImageSet
    queries: ImageSet
    fingerprints: tuple[str, str]


class PixelCache:
    """The pixels of image sets, each read once for each preprocessing."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, Preprocessing], Pixels] = {}

    def read(self, images: ImageSet, fingerprint: str, preprocessing: Preprocessing) -> Pixels:
        """Returns the pixels of a set."""
        key = (fingerprint, preprocessing)
        if key not in self._read:
            with show_progress(f"reading {images.name}", len(images.names)) as advance:
                self._read[key] = load_pixels(images, preprocessing, advance)
            report_skipped(self._read[key].skipped)
        return self._read[key]


def check_sets(gallery: str | None, queries: str | None) -> None:
    """Raises InputError where one of gallery and queries is named without the other."""
    if (gallery is None) != (queries is None):
        raise InputError("name both --gallery and --queries, or neither")


def open_sets(gallery: str | None, queries: str | None, root: Path | None, *, download: bool) -> Evaluated | None:
    """Returns the labelled sets that are named, or None where none are.

    Raises:
        DataError: there is no such data, or it has no two classes.
    """
    if gallery is None or queries is None:
        return None
    sets = [open_images(spec, root=root, download=download) for spec in (gallery, queries)]
    for images in sets:
        require_labels(images, "compare")
    return Evaluated(sets[0], sets[1], (fingerprint_images(sets[0]), fingerprint_images(sets[1])))


def measure_runs(runs: Sequence[Run], evaluated: Evaluated | None) -> dict[Path, dict[str, float]]:
    """Returns the figures of each run, by its folder: metrics as `cosine.map`, closeness, and what the run holds."""
    cache = PixelCache()
    figures: dict[Path, dict[str, float]] = {}
    for run, closeness in zip(runs, compare_closeness(runs), strict=True):
        metrics = evaluate_run(run, evaluated, cache) if evaluated is not None else {}
        named = {f"{metric}.{name}": value for metric, values in metrics.items() for name, value in values.items()}
        figures[run.folder] = named | closeness | describe_run_figures(run)
    return figures


def fingerprint_images(images: ImageSet) -> str:
    """Returns a SHA-256 that changes with the images or their labels.

    Files are known by name, size and time of change, as reading them all would take longer than a second call should;
    images in memory by their pixels, and all others by their content. One that cannot be had counts as unreadable, and
    is skipped when the set is read.
    """
    digest = hashlib.sha256(json.dumps([list(images.names), list(images.classes)]).encode())
    digest.update(images.labels.tobytes())
    if isinstance(images, FolderSet):
        for name in images.names:
            try:
                stat = (images.folder / name).stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
            except OSError:
                digest.update(UNREADABLE)
    elif isinstance(images, ArraySet):
        digest.update(np.ascontiguousarray(images.images).data)
    else:
        for position in range(len(images.names)):
            try:
                digest.update(images.fetch(position).content)
            except (DataError, OSError):
                digest.update(UNREADABLE)
    return digest.hexdigest()


def evaluate_run(run: Run, evaluated: Evaluated, cache: PixelCache) -> dict[str, dict[str, float]]:
    """Returns the metrics of `evaluate` by metric and name: those kept in the run folder, or new ones, which are kept.

    They are kept for these weights, this embedding and preprocessing, these images and this version.
    """
    about = {
        "format": KEPT_EVALUATION.version,
        "version": __version__,
        "weights_sha256": hash_file(run.weights),
        "network": run.network,
        "preprocessing": run.preprocessing.to_dict(),
        "gallery": evaluated.fingerprints[0],
        "queries": evaluated.fingerprints[1],
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    file = run.folder / f"evaluation-{key}.json"
    kept = _read_kept(file, about)
    if kept is not None:
        return kept
    metrics = _measure(run, evaluated, cache)
    write_text(file, json.dumps({"about": about, "metrics": metrics}, indent=2) + "\n")
    return metrics


def describe_run_figures(run: Run) -> dict[str, float]:
    """Returns what a run holds by itself: parameters, size, the last loss."""
    figures = {"parameters": float(run.config["parameters"]), "size_mb": run.weights.stat().st_size / 1e6}
    records = read_metrics(run.folder / "metrics.jsonl")
    return figures | ({"last_loss": float(records[-1]["loss"])} if records else {})


def compare_closeness(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Returns the figures of each run's closeness.json, empty where it has none that fits its weights; all are empty,
    with a warning, where they were measured on different images.
    """
    found = [read_closeness(run) for run in runs]
    if len({figures["fingerprint"] for figures in found if figures}) > 1:
        say(
            "warning: closeness was measured on different images, so it is left out: run 'indistill report RUN --data "
            "IMAGES' with the same ones for each"
        )
        return [{} for _ in runs]
    return [dict(figures["student"]) if figures else {} for figures in found]


def time_groups(groups: Sequence[Group], data: str | None, root: Path | None, threads: int) -> dict[str, Any]:
    """Returns the median latency in ms of each group's first run at batch 1, by the protocol of `bench`.

    Engines of the same preprocessing take turns. ONNX Runtime is timed where all runs are exported, else PyTorch.

    Args:
        groups: one run of each is timed.
        data: real images; None for those of the first run.
        root: where torchvision's data sets lie.
        threads: of each engine.
    """
    runs = [next(iter(group.runs.values())) for group in groups]
    files = [run.weights.with_suffix(".onnx") for run in runs]
    exported = all(file.is_file() for file in files)
    engines = [
        Engine("student", "onnxruntime", str(file), run.preprocessing)
        if exported
        else Engine("student", "pytorch", str(run.folder), run.preprocessing)
        for run, file in zip(runs, files, strict=True)
    ]
    protocol = Protocol(batches=(1,), threads=(threads,), rounds=ROUNDS)
    latencies: dict[str, float] = {}
    warnings: list[str] = []
    with show_progress("timing", count_turns(engines, protocol), "turns") as advance:
        for preprocessing in dict.fromkeys(run.preprocessing for run in runs):
            chosen = [position for position, run in enumerate(runs) if run.preprocessing == preprocessing]
            images = read_encoded(data or runs[chosen[0]].config["data"], TIMED_IMAGES, root=root).contents
            figures = run_bench([engines[p] for p in chosen], images, protocol, advance)
            for failure in figures.failures:
                raise InputError(f"{failure.model} cannot be timed: {failure.reason}")
            warnings += [warning for warning in figures.warnings if warning not in warnings]
            for position, result in zip(chosen, figures.results, strict=True):
                latencies[groups[position].name] = result.latency_ms.p50
    return {
        "engine": "onnxruntime" if exported else "pytorch",
        "threads": threads,
        "cpu": figures.environment.cpu,
        "latency_ms": latencies,
        "warnings": warnings,
    }


def _measure(run: Run, evaluated: Evaluated, cache: PixelCache) -> dict[str, dict[str, float]]:
    from indistill.models.embedding import embed_pixels
    from indistill.models.loading import load_network

    network = load_network(str(run.folder))
    parts = []
    for images, fingerprint in zip((evaluated.gallery, evaluated.queries), evaluated.fingerprints, strict=True):
        pixels = cache.read(images, fingerprint, run.preprocessing)
        with show_progress(f"embedding {images.name} by {run.folder}", len(pixels)) as advance:
            vectors = embed_pixels(network, run.preprocessing, pixels.images, advance)
        labels = [pixels.classes[label] if label >= 0 else None for label in pixels.labels]
        parts.append(LabelledVectors(vectors, labels))
    evaluations = evaluate_retrieval(parts[0], parts[1])
    return {metric: evaluations[metric].metrics for metric in METRICS}


def _read_kept(file: Path, about: dict[str, Any]) -> dict[str, dict[str, float]] | None:
    kept = _read_json(file)
    fits = kept.get("about") == about and is_document(EVALUATION, kept.get("metrics"))
    return kept["metrics"] if fits else None


def _read_json(file: Path) -> dict[str, Any]:
    """Returns the object in a file, or an empty one where the file is missing or damaged."""
    try:
        found = read_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
