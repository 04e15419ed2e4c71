"""One type of index with one setting, measured on vectors that are held out of it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import faiss
import numpy as np

from indistill.retrieval.index_types.types import (
    FaissIndex,
    Vectors,
    find_ivf,
    make_faiss,
    search_faiss,
    set_parameters,
)

HELD_OUT = 500  # queries: a standard error of 0.001 to 0.002 at recall 0.99
ID_BYTES = 8
TIMED_QUERIES, TIMED_SECONDS = 100, 1.0
ROUNDING = 1e-6  # of float32 inner products of unit vectors


@dataclass(frozen=True)
class Trial:
    """What one type with one setting was measured to do.

    Attributes:
        factory: FAISS's name.
        parameters: of its search.
        recall: of the held-out queries, mean.
        recall_error: standard error of that mean.
        memory_bytes: of all vectors in an index of this type; an estimate.
        read_bytes: codes and centroids that a query is compared with, mean. Unlike a time, the same in every run.
        latency_ms: of one query, median, on one thread.
        queries_per_s: all held-out queries in one batch, on one thread.
    """

    factory: str
    parameters: dict[str, int]
    recall: float
    recall_error: float
    memory_bytes: int
    read_bytes: int
    latency_ms: float
    queries_per_s: float


@dataclass(frozen=True)
class HeldOut:
    """Vectors to index (N - Q, D), queries (Q, D), the score of the k-th nearest of each (Q,), and N."""

    gallery: Vectors
    queries: Vectors
    thresholds: Vectors
    k: int
    count: int


def hold_out(vectors: Vectors, k: int, seed: int) -> HeldOut:
    """Up to a tenth of the vectors are queries; of fewer than ten, all are, and the index holds them too."""
    count = min(HELD_OUT, len(vectors) // 10)
    drawn = np.sort(np.random.default_rng(seed).choice(len(vectors), count, replace=False))
    gallery, queries = (np.delete(vectors, drawn, axis=0), vectors[drawn]) if count else (vectors, vectors)
    k = min(k, len(gallery))
    nearest, _ = faiss.knn(queries, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    return HeldOut(gallery, queries, nearest[:, -1], k, len(vectors))


def index_gallery(factory: str, held: HeldOut, seed: int, centroids: FaissIndex | None = None) -> FaissIndex:
    return make_faiss(factory, held.gallery, np.arange(len(held.gallery)), seed, centroids=centroids)


def measure_trial(index: FaissIndex, factory: str, parameters: dict[str, int], held: HeldOut) -> Trial:
    set_parameters(index, parameters)
    with one_thread():
        started = time.perf_counter()
        _, ids = search_faiss(index, held.queries, held.k)
        batch_s = time.perf_counter() - started
        latency_ms = 1e3 * _time_single(index, held)
    products = np.einsum("qd,qkd->qk", held.queries, held.gallery[ids])
    found = (ids >= 0) & (products >= held.thresholds[:, np.newaxis] - ROUNDING)
    recalls = found.mean(axis=1)  # by distance: an equally near vector counts as much
    return Trial(
        factory,
        parameters,
        recall=float(recalls.mean()),
        recall_error=float(recalls.std() / math.sqrt(len(recalls))),
        memory_bytes=_estimate_memory(index, held.count),
        read_bytes=_count_read(index, held.queries),
        latency_ms=latency_ms,
        queries_per_s=len(ids) / batch_s,
    )


def _time_single(index: FaissIndex, held: HeldOut) -> float:
    """Returns the median of the seconds of one query."""
    times: list[float] = []
    while len(times) < TIMED_QUERIES and sum(times) < TIMED_SECONDS:
        query = held.queries[len(times) % len(held.queries)][np.newaxis]
        started = time.perf_counter()
        search_faiss(index, query, held.k)
        times.append(time.perf_counter() - started)
    return median(times)


def _estimate_memory(index: FaissIndex, count: int) -> int:
    ivf = find_ivf(index)
    if ivf is None:
        return int(count * (faiss.downcast_index(index.index).code_size + ID_BYTES))
    return int(count * (ivf.code_size + ID_BYTES) + 4 * index.d * ivf.nlist)


def _count_read(index: FaissIndex, queries: Vectors) -> int:
    ivf = find_ivf(index)
    if ivf is None:
        return int(index.ntotal * faiss.downcast_index(index.index).code_size)
    sizes = np.array([ivf.invlists.list_size(i) for i in range(ivf.nlist)])
    _, probed = ivf.quantizer.search(queries, ivf.nprobe)
    return int(4 * index.d * ivf.nlist + ivf.code_size * sizes[probed].sum(axis=1).mean())


@contextmanager
def one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
