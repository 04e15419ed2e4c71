"""Scores of candidates by their stored vectors, the order of hits, and hits. Needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from indistill.export.session import Embeddings
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.store.segments import Ids

NOTHING = -1  # the id where there is no hit
BLOCK = 65_536  # vectors in memory at once


@dataclass(frozen=True)
class Hit:
    """An image found: its rank from 1, its id, its path relative to the gallery's root, its label, and the cosine."""

    rank: int
    id: int
    path: str
    label: str | None
    score: float


def make_hits(
    scores: Embeddings, ids: Ids, items: Mapping[int, CatalogueItem], threshold: float | None
) -> list[list[Hit]]:
    """Returns the hits of each query that reach a threshold.

    Args:
        scores: (Q, k), falling.
        ids: (Q, k), -1 for none.
        items: by id, all of `ids`.
        threshold: the least score; None for any.
    """
    return [
        [
            Hit(rank, i, items[i].path, items[i].label, score)
            for rank, (i, score) in enumerate(zip(row_ids.tolist(), row_scores.tolist(), strict=True), start=1)
            if i != NOTHING and (threshold is None or score >= threshold)
        ]
        for row_ids, row_scores in zip(ids, scores, strict=True)
    ]


def score_candidates(
    queries: Embeddings, candidates: Ids, k: int, find_vectors: Callable[[Ids], Embeddings]
) -> tuple[Embeddings, Ids]:
    """Returns the scores (Q, k) and ids (Q, k) of the k best candidates of each query, by their stored vectors.

    Args:
        queries: unit vectors (Q, D).
        candidates: ids (Q, C), -1 for none.
        k: at most C.
        find_vectors: gives the vectors (N, D) of ids (N,), which ascend.
    """
    wanted = np.unique(candidates[candidates != NOTHING])
    scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
    for start in range(0, len(wanted), BLOCK):
        block = wanted[start : start + BLOCK]
        products = queries @ find_vectors(block).T
        places = np.minimum(np.searchsorted(block, candidates), len(block) - 1)
        here = block[places] == candidates
        rows = np.broadcast_to(np.arange(len(queries))[:, np.newaxis], candidates.shape)
        scores[here] = products[rows[here], places[here]]
    return sort_hits(scores, candidates, k)


def sort_hits(scores: Embeddings, ids: Ids, k: int) -> tuple[Embeddings, Ids]:
    """Returns the k best columns of each row: by falling score, then rising id."""
    order = np.lexsort((ids, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
