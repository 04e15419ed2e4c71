"""Metrics of what an index really returns, and how much of the exact search it finds. Needs no torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from indistill.errors import IndexFolderError
from indistill.retrieval.evaluation.metrics import BLOCK_BYTES, BLOCK_QUERIES, JUNK, QueryFigures, Task, Vectors
from indistill.retrieval.evaluation.ranks import Ranks

DEFAULT_DEPTH = 1000
# Cosines of float32 that two programs sum in another order differ by less.
ROUNDING = 2e-6

Search = Callable[[Vectors, int], tuple[Vectors, Ranks]]


@dataclass(frozen=True)
class Deployment:
    """An index as it is searched.

    Attributes:
        search: gives the scores and ids (Q, k) of unit vectors (Q, D), best first; id -1 where there are fewer than k.
        ids: (N,) of the gallery's vectors, ascending.
        depth: how many items it is asked for, the query itself not counted.
    """

    search: Search
    ids: Ranks
    depth: int


@dataclass(frozen=True)
class DeployedFigures:
    """What was measured of an index.

    Attributes:
        figures: `map` over what was returned, divided by all relevant items, precision@K and recall@K.
        ks: the K of `search_recall`.
        search_recall: (E, len(ks)) share of the K nearest items of each query that the index returns among its first K.
    """

    figures: QueryFigures
    ks: list[int]
    search_recall: NDArray[np.float64]


def measure_deployed(
    task: Task, deployment: Deployment, ks: Sequence[int], on_progress: Callable[[int], None] = lambda _: None
) -> DeployedFigures:
    """Returns the metrics of each query from what an index returns for it.

    Args:
        task: the gallery is the index's own vectors, in the order of the ids.
        deployment: the index.
        ks: the K of precision@K, recall@K and the recall of the search; those above the depth are left out, and the
            depth itself is one of the recall of the search.
        on_progress: called with the number of queries just done.

    Raises:
        IndexFolderError: the index returns an id that is not its own.
    """
    within = [k for k in ks if k <= deployment.depth]
    recall_ks = sorted({*within, deployment.depth})
    counts = task.count_relevant()
    evaluated = np.flatnonzero(counts)
    names = ["map", *(f"precision@{k}" for k in within), *(f"recall@{k}" for k in within)]
    values, recall = np.empty((len(evaluated), len(names))), np.empty((len(evaluated), len(recall_ks)))
    row = 0
    for chosen, scores, found in search_blocks(task, deployment, evaluated):
        for query, exact, positions in zip(chosen.tolist(), scores, found, strict=True):
            labels = task.gallery_labels[positions]
            ranks = 1 + np.flatnonzero(labels[labels != JUNK] == task.query_labels[query])
            values[row] = measure_found(ranks, int(counts[query]), within)
            if task.own is not None:
                exact[task.own[query]] = -np.inf
            recall[row] = measure_search_recall(exact, positions, recall_ks)
            row += 1
        on_progress(len(chosen))
    ap = values[:, 0]
    return DeployedFigures(QueryFigures(evaluated, names, values, ap, ap, ap), recall_ks, recall)


def search_blocks(task: Task, deployment: Deployment, queries: Ranks) -> Iterator[tuple[Ranks, Vectors, list[Ranks]]]:
    """Yields blocks of some queries: which they are, their exact cosines with the whole gallery (B, N), and the gallery
    positions that the index returns for each, best first, without the query itself; `depth` of them at most.
    """
    block = max(1, min(BLOCK_QUERIES, BLOCK_BYTES // (4 * len(task.gallery))))
    for start in range(0, len(queries), block):
        chosen = queries[start : start + block]
        with threadpool_limits(1, user_api="blas"):  # BLAS threads would wait busily between the products
            scores = task.queries[chosen] @ task.gallery.T
        _, ids = deployment.search(task.queries[chosen], deployment.depth + (task.own is not None))
        found = []
        for query, returned in zip(chosen.tolist(), ids, strict=True):
            positions = locate_ids(returned[returned >= 0], deployment.ids)
            if task.own is not None:
                positions = positions[positions != task.own[query]]
            found.append(positions[: deployment.depth])
        yield chosen, scores, found


def measure_found(ranks: Ranks, count: int, ks: Sequence[int]) -> list[float]:
    """Returns average precision, each precision@K, and each recall@K, of one query.

    Args:
        ranks: of the relevant items that were found, from 1, ascending; may be empty.
        count: R of all relevant items, by which average precision is divided.
        ks: the K.
    """
    hits = np.searchsorted(ranks, ks, side="right")
    precision = float((np.arange(1, len(ranks) + 1) / ranks).sum() / count)
    return [precision, *(hits / np.array(ks)).tolist(), *(hits > 0).astype(float).tolist()]


def measure_search_recall(exact: Vectors, positions: Ranks, ks: Sequence[int]) -> list[float]:
    """Returns for each K the share of the K nearest items that stand among the first K that were found.

    An item counts as found where one at least as near stands in its place, so that ties are no misses.

    Args:
        exact: (N,) cosines of the whole gallery; -inf for what is left out.
        positions: what was found, best first.
        ks: ascending; where the gallery is smaller, all of it.

    Reference: Aumüller, Bernhardsson and Faithfull 2020, "ANN-Benchmarks", section 2.2: recall by distance.
    """
    size = int(np.count_nonzero(exact > -np.inf))
    limits = [min(k, size) for k in ks]
    ordered = np.partition(exact, [len(exact) - k for k in limits])
    near = [exact[positions[:k]] >= ordered[len(exact) - k] - ROUNDING for k in limits]
    return [float(np.count_nonzero(found) / k) for found, k in zip(near, limits, strict=True)]


def locate_ids(ids: Ranks, known: Ranks) -> Ranks:
    """Returns the positions of ids among all, which are ascending."""
    positions = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    unknown = ids[known[positions] != ids]
    if len(unknown):
        raise IndexFolderError(f"the index is damaged: it returns id {unknown[0]}, which its catalogue has not")
    return positions
