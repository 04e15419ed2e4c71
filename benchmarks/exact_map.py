"""Processor time of exact mAP: `evaluate_vectors` against a full sort by scikit-learn.

    python -m benchmarks.exact_map --json exact_map.json

10,000 queries of 10 classes against a gallery of 50,000 unit vectors, 64 dimensions. The reference asks scikit-
learn's NearestNeighbors for the whole gallery in order, 128 queries at a time, and takes average precision and the 11
recall points of the published evaluation from cumulative sums, query by query. It is measured twice: with
NearestNeighbors as it comes (Euclidean, which ranks unit vectors as the cosine does), and with the fastest setting
found (brute force by the cosine). It is measured on the first queries alone (--reference-queries) and scaled linearly
to all of them; ours, which gives more metrics than these two, is measured on all. Processor time is that of all
threads of the process. All must give the same metrics on the reference's queries.
"""

import argparse
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.retrieval.evaluation.metrics import Labels, Vectors, evaluate_vectors, normalise_rows

CLASSES = 10
BATCH = 128
RECALL_POINTS = np.linspace(0, 1, 11)
TOLERANCE = 1e-4
REFERENCES = {"as it comes": {}, "brute force, cosine": {"algorithm": "brute", "metric": "cosine"}}
SPREAD = 1.5  # of a class around its centre, for a mAP that is neither that of chance nor perfect


def evaluate_by_sorting(
    setting: dict[str, str], gallery: Vectors, gallery_labels: Labels, queries: Vectors, query_labels: Labels
) -> dict[str, float]:
    """Returns `map` and `map_paper11` from the whole ranking of each query."""
    finder = NearestNeighbors(n_neighbors=len(gallery), **setting).fit(gallery)
    precisions, points = [], []
    for start in range(0, len(queries), BATCH):
        batch = slice(start, start + BATCH)
        neighbours = finder.kneighbors(queries[batch], return_distance=False)
        for ranking, label in zip(neighbours, query_labels[batch], strict=True):
            relevant = gallery_labels[ranking] == label
            found = np.cumsum(relevant)
            precision, recall = found / np.arange(1, len(found) + 1), found / found[-1]
            precisions.append(precision[relevant].mean())
            points.append(_interpolate(precision, recall, len(neighbours)))
    return {"map": float(np.mean(precisions)), "map_paper11": float(np.mean(points))}


def _interpolate(precision: NDArray[np.float64], recall: NDArray[np.float64], batch: int) -> float:
    head = precision[: batch - 1]
    head[:] = np.maximum.accumulate(precision[batch - 1 :: -1])[::-1][: batch - 1]
    nearest = [int(np.abs(recall - point).argmin()) for point in RECALL_POINTS]
    return float(precision[nearest].mean())


def make_vectors(count: int, centres: NDArray[np.float64], generator: np.random.Generator) -> tuple[Vectors, Labels]:
    """Returns vectors around the centres of their classes, and the labels."""
    labels = generator.integers(0, len(centres), count)
    noise = generator.standard_normal((count, centres.shape[1]))
    return normalise_rows((centres[labels] + SPREAD * noise).astype(np.float32)), labels


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000, help="(10000)")
    parser.add_argument("--gallery", type=int, default=50_000, help="(50000)")
    parser.add_argument("--dim", type=int, default=64, help="(64)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--reference-queries", type=int, default=512, help="queries of the reference (512)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    generator = np.random.default_rng(arguments.seed)
    centres = generator.standard_normal((CLASSES, arguments.dim))
    gallery, gallery_labels = make_vectors(arguments.gallery, centres, generator)
    queries, query_labels = make_vectors(arguments.queries, centres, generator)
    few = min(arguments.reference_queries, arguments.queries)
    scale = arguments.queries / few

    checked = evaluate_vectors(gallery, gallery_labels, queries[:few], query_labels[:few], "cosine").metrics
    ours: list[float] = []
    references: dict[str, list[float]] = {name: [] for name in REFERENCES}
    for _ in range(arguments.rounds):
        started = process_time()
        evaluate_vectors(gallery, gallery_labels, queries, query_labels, "cosine")
        ours.append(process_time() - started)
        for name, setting in REFERENCES.items():
            started = process_time()
            expected = evaluate_by_sorting(setting, gallery, gallery_labels, queries[:few], query_labels[:few])
            references[name].append(scale * (process_time() - started))
            for metric, value in expected.items():
                if abs(value - checked[metric]) > TOLERANCE:
                    raise SystemExit(f"{metric}: ours gives {checked[metric]:.6f}, {name} {value:.6f}")

    print(f"{arguments.queries:,} queries x {arguments.gallery:,} gallery x {arguments.dim}, {CLASSES} classes")
    print(f"  ours, all metrics: {median(ours):.2f} CPU-s")
    ratios = {
        name: measure_spread([r / o for r, o in zip(values, ours, strict=True)]) for name, values in references.items()
    }
    for name, values in references.items():
        print(
            f"  scikit-learn, {name}: {median(values):.2f} CPU-s ({few:,} queries, times {scale:.2f}), "
            f"ratio {format_spread(ratios[name])} (min / median / max of {arguments.rounds} rounds)"
        )
    report_machine(machine)
    figures = {
        "benchmark": "exact_map",
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "reference_scaled_by": scale,
        "ours_cpu_s": measure_spread(ours),
        "reference_cpu_s": {name: measure_spread(values) for name, values in references.items()},
        "ratio": ratios,
        "checked": checked,
    }
    write_figures(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
