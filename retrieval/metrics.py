"""Exact retrieval metrics without a full sort, by the names of docs/metrics.md. Needs no torch.

The ranking is by score, then by gallery position. Only the ranks of the relevant items are needed: for each of them,
the number of irrelevant items that stand before it, which sorting the irrelevant items' scores alone gives. Memory is
constant for each block of queries.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Metric = Literal["cosine", "euclidean"]
Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]
Ranks = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK_BYTES = 64 * 2**20  # of scores held at a time
BLOCK_QUERIES = 64
PAPER_BATCH = 128  # queries in a batch of the published evaluation
PAPER_TOP = 100
RECALL_POINTS = np.arange(11) / 10
BUCKETS = 1 << 15
DEFAULT_KS = (1, 5, 10, 100)


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


def evaluate_vectors(
    gallery: Vectors,
    gallery_labels: Labels,
    queries: Vectors,
    query_labels: Labels,
    metric: Metric,
    ks: Sequence[int] = DEFAULT_KS,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Returns the metrics of ranking the whole gallery for each query; relevant is what has the query's label.

    Args:
        gallery: (N, D).
        gallery_labels: (N,).
        queries: (Q, D).
        query_labels: (Q,); -1 for none.
        metric: `cosine` ranks by the cosine, `euclidean` by the distance of the vectors as they are.
        ks: the K of precision@K and recall@K.
        on_progress: called with the number of queries just done.

    Raises:
        ValueError: no query has a relevant item.
    """
    order = np.argsort(gallery_labels, kind="stable")  # relevant items stand side by side
    sorted_labels = gallery_labels[order]
    starts = np.searchsorted(sorted_labels, query_labels, side="left")
    ends = np.searchsorted(sorted_labels, query_labels, side="right")
    evaluated = np.flatnonzero((ends > starts) & (query_labels >= 0))
    if not len(evaluated):
        raise ValueError("no query has a relevant item in the gallery")
    left, right = _prepare_scores(queries, gallery[order], metric)
    names = list_metrics(ks)
    values = np.empty((len(evaluated), len(names)))
    block = max(1, min(BLOCK_QUERIES, BLOCK_BYTES // (4 * len(gallery))))
    buffer = np.empty((min(block, len(evaluated)), len(gallery)), dtype=np.float32)
    with threadpool_limits(1, user_api="blas"):  # BLAS threads would wait busily between the products
        for start in range(0, len(evaluated), block):
            chosen = evaluated[start : start + block]
            scores = np.matmul(left[chosen], right, out=buffer[: len(chosen)])
            for row, query in enumerate(chosen.tolist()):
                ranks = rank_relevant(scores[row], int(starts[query]), int(ends[query]), order)
                batch = min(PAPER_BATCH, len(queries) - query // PAPER_BATCH * PAPER_BATCH)
                values[start + row] = compute_metrics(ranks, len(gallery), ks, batch)
            on_progress(len(chosen))
    means = values.mean(axis=0)
    return Evaluation(dict(zip(names, map(float, means), strict=True)), len(evaluated), len(queries) - len(evaluated))


def rank_relevant(scores: Vectors, start: int, end: int, positions: Ranks) -> Ranks:
    """Returns the ranks of the relevant items, from 1, in ascending order.

    Args:
        scores: (N,) of the gallery, in any order in which the relevant items stand side by side; higher is better.
        start: where the relevant items begin.
        end: where they end.
        positions: (N,) the gallery position of each, by which equal scores are ranked.
    """
    relevant = np.sort(scores[start:end])
    before, contested = _count_reaching(scores, start, end, relevant)
    values = np.sort(scores[contested])
    places = np.searchsorted(relevant, values, side="right")
    before += len(values) - np.cumsum(np.bincount(places, minlength=len(relevant) + 1))[:-1]
    ties = values[relevant[places - 1] == values]
    if len(ties):
        shared, equal = np.unique(ties, return_counts=True)
        first, last = (np.searchsorted(relevant, shared, side=side) for side in ("left", "right"))
        tied = np.concatenate([np.arange(*span) for span in zip(first, last, strict=True)])
        found = np.concatenate((np.arange(start, end), contested))
        irrelevant = np.arange(len(found)) >= len(relevant)
        before[tied] = _resolve_ties(shared, before[first] - equal, scores[found], irrelevant, positions[found])[::-1]
    return before[::-1] + np.arange(1, len(relevant) + 1)


def _count_reaching(scores: Vectors, start: int, end: int, relevant: Vectors) -> tuple[Ranks, Ranks]:
    """Returns how many irrelevant scores are certain to exceed each relevant one, and where the contested ones stand in
    `scores`: the irrelevant scores that are so near to a relevant one that they have to be compared with it.

    The range of the relevant scores is cut into equal buckets. Most irrelevant scores fall into one without a relevant
    score, and counting each bucket tells how many they exceed; the few others are contested. (Sorting all of them takes
    three to seven times longer on AMD's Zen 4 with NumPy 2.4, and as long as this on others.)

    Args:
        scores: (N,) of the gallery.
        start: where the relevant items begin.
        end: where they end.
        relevant: their scores, ascending.
    """
    lowest, highest = relevant[0], relevant[-1]
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.float32(BUCKETS - 3) / np.float32(highest - lowest)
    if not 0 < scale < np.inf:  # one score, or a range beyond the numbers' own
        reaching = scores >= lowest
        reaching[start:end] = False
        return np.zeros(len(relevant), np.int64), np.flatnonzero(reaching)
    # Bucket 0 is below all relevant scores, the last one above; what rounding puts elsewhere is contested at worst.
    buckets = np.clip((scores - lowest) * scale + 1, 0, BUCKETS - 1).astype(np.int64)
    occupied = ((relevant - lowest) * scale + 1).astype(np.int64)
    buckets[start:end] = 0
    is_occupied = np.zeros(BUCKETS, dtype=bool)
    is_occupied[occupied] = True
    contested = np.flatnonzero(is_occupied[buckets])
    counts = np.bincount(buckets, minlength=BUCKETS)
    counts[occupied] = 0
    up_to = np.cumsum(counts)
    return up_to[-1] - up_to[occupied], contested


def _resolve_ties(values: Vectors, higher: Ranks, scores: Vectors, irrelevant: Mask, positions: Ranks) -> Ranks:
    """Returns how many irrelevant items stand before each tied relevant item, in the order of the ranking.

    Args:
        values: the scores that relevant and irrelevant items have in common, ascending.
        higher: number of irrelevant items with a higher score than each of them.
        scores: of items among which all tied ones are.
        irrelevant: whether each of these is irrelevant.
        positions: their gallery positions.
    """
    place = np.minimum(np.searchsorted(values, scores), len(values) - 1)
    equal = np.flatnonzero(values[place] == scores)
    place = place[equal]
    ranking = np.lexsort((positions[equal], -place))
    place, irrelevant = place[ranking], irrelevant[equal[ranking]]
    count = np.cumsum(irrelevant)  # irrelevant items up to here, over all groups of equal scores
    group_start = np.searchsorted(-place, -place, side="left")
    within: Ranks = count - np.concatenate(([0], count))[group_start]
    result: Ranks = (higher[place] + within)[~irrelevant]
    return result


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
