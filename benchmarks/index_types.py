"""The index that `choose_type` chooses, beside the exact one: recall and queries per second on one thread.

Vectors of overlapping classes of very unequal sizes, with few intrinsic dimensions and some noise in all: not so clean
that any list of IVF holds all neighbours. Recall and rates are of queries that the choice has not seen.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.retrieval.index_types.choose import Targets, choose_type
from indistill.retrieval.index_types.trials import ROUNDING, Trial
from indistill.retrieval.index_types.types import FaissIndex, Vectors, make_faiss, search_faiss, set_parameters

INTRINSIC = 32
VECTORS_PER_CLASS, CLASSES = 500, (200, 2000)  # mean, and the least and most of classes
SIZE_POWER = 0.7  # the r-th class is as large as r to the minus this
SPREAD, NOISE = 0.7, 0.05  # of a class in the intrinsic dimensions, its centre having 1; of all dimensions
BLOCK = 50_000


def make_vectors(count: int, dimension: int, seed: int) -> Vectors:
    """Returns unit vectors (N, D)."""
    generator = np.random.default_rng(seed)
    classes = int(np.clip(count // VECTORS_PER_CLASS, *CLASSES))
    basis = generator.standard_normal((INTRINSIC, dimension)) / np.sqrt(dimension)
    centres = generator.standard_normal((classes, INTRINSIC))
    spreads = SPREAD * generator.uniform(0.6, 1.4, (classes, 1))
    sizes = np.arange(1, classes + 1) ** -SIZE_POWER
    labels = generator.choice(classes, count, p=sizes / sizes.sum())
    vectors = np.empty((count, dimension), np.float32)
    for start in range(0, count, BLOCK):
        block = labels[start : start + BLOCK]
        inner = centres[block] + spreads[block] * generator.standard_normal((len(block), INTRINSIC))
        vectors[start : start + BLOCK] = inner @ basis + NOISE * generator.standard_normal((len(block), dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def time_queries(index: FaissIndex, queries: Vectors, k: int, batch: int) -> float:
    """Returns the queries per second."""
    started = time.perf_counter()
    for start in range(0, len(queries), batch):
        search_faiss(index, queries[start : start + batch], k)
    return len(queries) / (time.perf_counter() - started)


def show_trial(trial: Trial) -> None:
    setting = ", ".join(f"{name}={value}" for name, value in trial.parameters.items())
    print(
        f"  {trial.factory:16} {setting:11} recall {trial.recall:.4f}  {trial.memory_bytes / 1e6:8.1f} MB  "
        f"{trial.latency_ms:8.3f} ms  {trial.queries_per_s:9,.0f} queries/s",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000, help="(1000000)")
    parser.add_argument("--dim", type=int, default=128, help="(128)")
    parser.add_argument("--recall", type=float, default=0.99, help="(0.99)")
    parser.add_argument("--top", type=int, default=10, metavar="K", help="(10)")
    parser.add_argument("--queries", type=int, default=512, help="that the choice has not seen (512)")
    parser.add_argument("--batch", type=int, default=256, help="(256)")
    parser.add_argument("--rounds", type=int, default=3, help="(3)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    everything = make_vectors(arguments.vectors + arguments.queries, arguments.dim, arguments.seed)
    vectors, queries = everything[arguments.queries :], everything[: arguments.queries]
    print(f"{len(vectors):,} vectors x {arguments.dim}, recall@{arguments.top} {arguments.recall:g}; trials:")
    started = time.perf_counter()
    choice = choose_type(vectors, Targets(arguments.recall, arguments.top), seed=arguments.seed, on_progress=show_trial)
    choose_s = time.perf_counter() - started

    started = time.perf_counter()
    chosen = make_faiss(choice.factory, vectors, np.arange(len(vectors)), arguments.seed)
    build_s = time.perf_counter() - started
    set_parameters(chosen, choice.parameters)
    exact = make_faiss("Flat", vectors, np.arange(len(vectors)), arguments.seed)
    faiss.omp_set_num_threads(1)
    thresholds = search_faiss(exact, queries, arguments.top)[0][:, -1:]
    _, ids = search_faiss(chosen, queries, arguments.top)
    products = np.einsum("qd,qkd->qk", queries, vectors[ids])
    recall = float(((ids >= 0) & (products >= thresholds - ROUNDING)).mean())

    rates: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for name, batch in (("single", 1), ("batch", arguments.batch)):
            for which, index in (("exact", exact), ("chosen", chosen)):
                rate = time_queries(index, queries, arguments.top, batch)
                rates.setdefault(name, {}).setdefault(which, []).append(rate)
    ratios = {
        name: measure_spread([c / e for c, e in zip(both["chosen"], both["exact"], strict=True)])
        for name, both in rates.items()
    }

    print(f"chosen in {choose_s:.0f} s: {choice.factory} {choice.parameters}, built in {build_s:.0f} s")
    print(f"recall@{arguments.top} of {len(queries)} other queries: {recall:.4f}")
    for name, both in rates.items():
        spreads = {which: format_spread(measure_spread(values)) for which, values in both.items()}
        print(
            f"{name:6}: exact {spreads['exact']}, chosen {spreads['chosen']} queries/s, one thread; "
            f"ratio {format_spread(ratios[name])} (min / median / max of {arguments.rounds} rounds)"
        )
    report_machine(machine)
    figures = {
        "benchmark": "index_types",
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "factory": choice.factory,
        "parameters": choice.parameters,
        "memory_bytes": choice.memory_bytes,
        "recall": recall,
        "recall_of_trial": choice.recall,
        "choose_s": choose_s,
        "build_s": build_s,
        "queries_per_s": {
            name: {which: measure_spread(values) for which, values in both.items()} for name, both in rates.items()
        },
        "ratio": ratios,
        "trials": [asdict(trial) for trial in choice.trials],
    }
    write_figures(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
