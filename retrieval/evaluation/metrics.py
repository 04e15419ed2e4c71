"""Exact retrieval metrics, by the names of docs/metrics.md, from the ranks of the relevant items. Needs no torch.

Memory is constant for each block of queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from indistill.retrieval.evaluation.ranks import Ranks, rank_with_bounds

Metric = Literal["cosine", "euclidean"]
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Figures = NDArray[np.float64]

BLOCK_BYTES = 64 * 2**20  # of scores held at a time
BLOCK_QUERIES = 64
PAPER_BATCH = 128  # queries in a batch of the published evaluation
PAPER_TOP = 100
RECALL_POINTS = np.arange(11) / 10
DEFAULT_KS = (1, 5, 10, 100)
UNLABELLED, JUNK = -1, -2


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a set of queries.

    Attributes:
        metrics: mean over the queries, fractions of 1, by name.
        queries: number of queries that were evaluated.
        skipped: number of queries without a relevant item in the gallery, which count nowhere.
    """

    metrics: dict[str, float]
    queries: int
    skipped: int


@dataclass(frozen=True)
class Task:
    """What is looked for in what; relevant to a query is what has its label.

    Attributes:
        gallery: (N, D).
        gallery_labels: (N,) class numbers; -1 for none, `JUNK` for what is taken out of every ranking.
        queries: (Q, D).
        query_labels: (Q,) class numbers; -1 for a class that the gallery has not, `JUNK` for what is no query.
        own: (Q,) the gallery position of each query itself, which is taken out of its ranking; None where no query is
            in the gallery.
    """

    gallery: Vectors
    gallery_labels: Labels
    queries: Vectors
    query_labels: Labels
    own: Ranks | None = None

    def count_relevant(self) -> Ranks:
        """Returns the number of relevant items of each query, without itself; (Q,)."""
        grouped = np.sort(self.gallery_labels)
        left, right = (np.searchsorted(grouped, self.query_labels, side=side) for side in ("left", "right"))
        counts: Ranks = np.where(self.query_labels >= 0, right - left, 0)
        return counts if self.own is None else counts - (counts > 0)

    def expect_by_chance(self) -> Figures:
        """Returns the average precision of each query that random orders of the gallery have in the mean; (Q,).

        0 where nothing is relevant.

        Reference: Bestgen 2015, "Exact Expected Average Precision of the Random Baseline for System Evaluation".
        """
        relevant = self.count_relevant()
        count = int(np.count_nonzero(self.gallery_labels != JUNK)) - (self.own is not None)
        harmonic = np.sum(1 / np.arange(1, count + 1))
        expected = (harmonic + (relevant - 1) * (count - harmonic) / max(count - 1, 1)) / count
        figures: Figures = np.where(relevant > 0, expected, 0.0)
        return figures


@dataclass(frozen=True)
class QueryFigures:
    """What was measured of each query that has a relevant item, E of them.

    Attributes:
        queries: (E,) which ones they are.
        names: of the M metrics.
        values: (E, M), fractions of 1.
        best: (E,) average precision where of equal scores the relevant items stand first.
        worst: (E,) the same, where they stand last.
        cut: (E,) average precision over the first `depth` items alone, divided by all relevant ones.
    """

    queries: Ranks
    names: list[str]
    values: Figures
    best: Figures
    worst: Figures
    cut: Figures

    def read(self, name: str) -> Figures:
        """Returns a metric of each query, (E,)."""
        return self.values[:, self.names.index(name)]


def evaluate_vectors(
    gallery: Vectors,
    gallery_labels: Labels,
    queries: Vectors,
    query_labels: Labels,
    metric: Metric,
    ks: Sequence[int] = DEFAULT_KS,
) -> Evaluation:
    """Returns the mean metrics of ranking the whole gallery for each query; see `Task` and `measure_queries`."""
    task = Task(gallery, gallery_labels, queries, query_labels)
    return average_figures(measure_queries(task, metric, ks), len(queries))


def average_figures(figures: QueryFigures, queries: int) -> Evaluation:
    """Returns the mean of each metric; all others of `queries` queries were skipped."""
    means = map(float, figures.values.mean(axis=0))
    return Evaluation(dict(zip(figures.names, means, strict=True)), len(figures.values), queries - len(figures.values))


def measure_queries(
    task: Task,
    metric: Metric,
    ks: Sequence[int] = DEFAULT_KS,
    depth: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> QueryFigures:
    """Returns the metrics of each query from the ranking of the whole gallery.

    Args:
        task: gallery and queries.
        metric: `cosine` ranks by the cosine, `euclidean` by the distance of the vectors as they are.
        ks: the K of precision@K and recall@K.
        depth: of `QueryFigures.cut`; default all.
        on_progress: called with the number of queries just done.

    Raises:
        ValueError: no query has a relevant item.
    """
    kept = np.flatnonzero(task.gallery_labels != JUNK)
    order = kept[np.argsort(task.gallery_labels[kept], kind="stable")]  # relevant items stand side by side
    sorted_labels = task.gallery_labels[order]
    starts, ends = (np.searchsorted(sorted_labels, task.query_labels, side=side) for side in ("left", "right"))
    evaluated = np.flatnonzero(task.count_relevant())
    if not len(evaluated):
        raise ValueError("no query has a relevant item in the gallery")
    places = np.argsort(order)  # where each gallery item stands in the order, but for junk
    left, right = _prepare_scores(task.queries, task.gallery[order], metric)
    names = list_metrics(ks)
    values, bounds = np.empty((len(evaluated), len(names))), np.empty((len(evaluated), 3))
    block = max(1, min(BLOCK_QUERIES, BLOCK_BYTES // (4 * len(order))))
    buffer = np.empty((min(block, len(evaluated)), len(order)), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"):  # BLAS threads would wait busily between the products
        for first in range(0, len(evaluated), block):
            chosen = evaluated[first : first + block]
            scores = np.matmul(left[chosen], right, out=buffer[: len(chosen)])
            for row, query in enumerate(chosen.tolist(), start=first):
                ranked, positions, start, end = scores[row - first], order, int(starts[query]), int(ends[query])
                if task.own is not None:
                    place = np.searchsorted(kept, task.own[query])
                    ranked, positions = (np.delete(part, places[place]) for part in (ranked, order))
                    end -= 1
                found = rank_with_bounds(ranked, start, end, positions)
                batch = min(PAPER_BATCH, len(task.queries) - query // PAPER_BATCH * PAPER_BATCH)
                values[row] = compute_metrics(found.ranks, len(ranked), ks, batch)
                bounds[row] = [
                    _cut_precision(ranks, limit)
                    for ranks, limit in ((found.best, None), (found.worst, None), (found.ranks, depth))
                ]
            on_progress(len(chosen))
    return QueryFigures(evaluated, names, values, *bounds.T)


def _cut_precision(ranks: Ranks, depth: int | None) -> float:
    """Returns the sum of the precisions at the ranks up to `depth`, divided by the number of all relevant items."""
    precisions = np.arange(1, len(ranks) + 1) / ranks
    within = len(ranks) if depth is None else int(np.searchsorted(ranks, depth, side="right"))
    return float(precisions[:within].sum() / len(ranks))


def list_metrics(ks: Sequence[int]) -> list[str]:
    """Returns the names of the metrics that `compute_metrics` gives, in its order."""
    return [
        "map",
        "map_paper11",
        "map@r",
        "r_precision",
        *(f"precision@{k}" for k in ks),
        *(f"recall@{k}" for k in ks),
        f"precision_paper11@{PAPER_TOP}",
    ]


def compute_metrics(ranks: Ranks, gallery_size: int, ks: Sequence[int], paper_batch: int) -> list[float]:
    """Returns a query's metrics, fractions of 1.

    `map`, `map@r` and `r_precision` are those of Musgrave et al. 2020, "A Metric Learning Reality Check", section 3.2,
    with `map` over the whole ranking; recall@k is one where any of the first k is relevant. precision@k divides by k,
    also where the gallery is smaller.

    Args:
        ranks: of the R relevant items, from 1, ascending; at least one.
        gallery_size: N.
        ks: the K of precision@K and recall@K.
        paper_batch: queries in the published evaluation's batch with this query.
    """
    count = len(ranks)
    precisions = np.arange(1, count + 1) / ranks  # at the rank of each relevant item
    within_r, *hits = np.searchsorted(ranks, (count, *ks), side="right").tolist()
    paper = _interpolate_paper(ranks, gallery_size, paper_batch)
    return [
        float(precisions.mean()),
        _compute_paper11(ranks, precisions, paper),
        float(precisions[:within_r].sum() / count),
        within_r / count,
        *(hit / k for hit, k in zip(hits, ks, strict=True)),
        *(float(hit > 0) for hit in hits),
        _compute_paper_top(ranks, gallery_size, paper),
    ]


def _interpolate_paper(ranks: Ranks, gallery_size: int, batch: int) -> NDArray[np.float64]:
    """Returns the precision at the first `batch` - 1 ranks, made non-increasing from the right up to rank `batch`."""
    size = min(batch, gallery_size)
    first = ranks[: np.searchsorted(ranks, size, side="right")]
    relevant = np.zeros(size)
    relevant[first - 1] = 1
    precision = np.cumsum(relevant) / np.arange(1, size + 1)
    return np.maximum.accumulate(precision[::-1])[::-1][: size - 1]


def _compute_paper11(ranks: Ranks, precisions: NDArray[np.float64], paper: NDArray[np.float64]) -> float:
    """Mean of the precision at the rank with the recall nearest to 0, 0.1, ..., 1 (the first of equally near ones).

    Reference: the published evaluation of PKT, PKTH and InDistill, see docs/metrics.md.
    """
    nearest = _choose_recall_counts(len(ranks))
    if ranks[0] == 1:
        nearest = np.maximum(nearest, 1)  # a recall of zero occurs at no rank
    index = np.where(nearest == 0, 0, ranks[np.maximum(nearest, 1) - 1] - 1)
    values = np.where(nearest == 0, 0.0, precisions[np.maximum(nearest, 1) - 1])
    interpolated = index < len(paper)
    values[interpolated] = paper[index[interpolated]]
    return float(values.mean())


@lru_cache(maxsize=1024)
def _choose_recall_counts(count: int) -> Ranks:
    """Returns how many of the relevant items are found at the recall nearest to 0, 0.1, ..., 1; (11,)."""
    lower = np.floor(RECALL_POINTS * count).astype(np.int64)
    # Of the two neighbouring numbers of relevant items, compare |h / R - point| as the definition does, in floats.
    upper = np.minimum(lower + 1, count)
    closer = np.abs(upper / count - RECALL_POINTS) < np.abs(lower / count - RECALL_POINTS)
    return np.where(closer, upper, lower)


def _compute_paper_top(ranks: Ranks, gallery_size: int, paper: NDArray[np.float64]) -> float:
    top = min(PAPER_TOP, gallery_size)
    if top <= len(paper):
        return float(paper[top - 1])
    return int(np.searchsorted(ranks, top, side="right")) / top


def _prepare_scores(queries: Vectors, gallery: Vectors, metric: Metric) -> tuple[Vectors, Vectors]:
    """Returns two matrices whose product ranks as the metric does: (Q, D') and (D', N)."""
    if metric == "cosine":
        return normalise_rows(queries), np.ascontiguousarray(normalise_rows(gallery).T)
    # -|q - g|^2 / 2 = q g - |g|^2 / 2 - |q|^2 / 2, and the last term is the same for the whole gallery.
    half = np.sum(gallery.astype(np.float64) ** 2, axis=1, keepdims=True) / 2
    extended = np.concatenate((queries, np.ones((len(queries), 1), np.float32)), axis=1)
    return extended, np.ascontiguousarray(np.concatenate((gallery, -half.astype(np.float32)), axis=1).T)


def normalise_rows(vectors: Vectors) -> Vectors:
    """Returns the rows with length one; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))
    return result
