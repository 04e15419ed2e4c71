"""Groups of near-duplicates in an index, exact on the stored vectors. Reports only, and needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from indistill.errors import InputError
from indistill.export.session import Embeddings
from indistill.retrieval.catalogue import CatalogueItem
from indistill.retrieval.protocol import SearchIndex

Positions = NDArray[np.int64]
NO_PAIRS: tuple[Positions, Positions] = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
BLOCK = 1024  # images compared with as many others at once
MAX_PAIRS = 2**20  # that wait to be joined; more of one block are joined in a row
ROUNDING = 1e-6  # of the cosine of two unit vectors in float32


@dataclass(frozen=True)
class Duplicate:
    """An image of a group.

    Attributes:
        item: as it is catalogued.
        score: its cosine to the first image of the group. Pairs make chains: it may be less than the threshold.
        copy_of: the id of the first image of the group with the same content, byte by byte; None for that one itself.
    """

    item: CatalogueItem
    score: float
    copy_of: int | None


def find_duplicates(
    index: SearchIndex, threshold: float, on_progress: Callable[[int], None] = lambda _: None
) -> list[list[Duplicate]]:
    """Returns the groups of images that pairs join, of equal content or with a cosine of the threshold at least.

    The largest group comes first, of equal ones that with the smallest id, and in each the ids rise. The memory is
    that of the vectors, of a hash for each, of the groups' items, and of some millions of pairs.

    Args:
        index: whose stored vectors are compared.
        threshold: above 0 and up to 1; met to a float32's rounding, 1e-6.
        on_progress: called with the number of images that have just been compared with all others.

    Raises:
        InputError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"the threshold of near-duplicates is a cosine above 0 and up to 1, not {threshold}")
    ids, vectors, _ = index.read_vectors()
    firsts = _find_first_copies(index)
    groups = group_vectors(vectors, threshold, copies=firsts, on_progress=on_progress)
    items = index.find_items([i for group in groups for i in ids[group].tolist()])
    return [
        [
            Duplicate(items[i], score, None if first == i else first)
            for i, first, score in zip(
                ids[group].tolist(),
                ids[firsts[group]].tolist(),
                (vectors[group] @ vectors[group[0]]).tolist(),
                strict=True,
            )
        ]
        for group in groups
    ]


def group_vectors(
    vectors: Embeddings,
    threshold: float,
    *,
    copies: Positions | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    block: int = BLOCK,
) -> list[Positions]:
    """Returns the components of at least two rows of unit vectors (N, D), the largest first, positions rising.

    Args:
        vectors: (N, D).
        threshold: the cosine from which on two rows are joined.
        copies: for each row (N,) another one, or itself, with which it is joined in any case.
        on_progress: called with the number of rows just done.
        block: rows compared with as many others at once.
    """
    count = len(vectors)
    joined = _Joined(count)
    if copies is not None:
        joined.add(np.arange(count), copies)
    for start in range(0, count, block):
        rows = vectors[start : start + block]
        for other in range(start, count, block):
            close = rows @ vectors[other : other + block].T >= threshold - ROUNDING
            left, right = np.nonzero(close)
            joined.add(left + start, right + other)
        on_progress(len(rows))
    return joined.list_groups()


class _Joined:
    """Rows joined by pairs. Of many pairs only what they join is kept: each row's component."""

    def __init__(self, count: int) -> None:
        self._count, self._waiting = count, 0
        self._components: Positions = np.arange(count)
        self._pairs: list[tuple[Positions, Positions]] = [NO_PAIRS]

    def add(self, left: Positions, right: Positions) -> None:
        distinct = left != right
        self._pairs.append((left[distinct], right[distinct]))
        self._waiting += int(distinct.sum())
        if self._waiting > MAX_PAIRS:
            self._join()

    def list_groups(self) -> list[Positions]:
        self._join()
        order = np.argsort(self._components, kind="stable")
        _, starts, sizes = np.unique(self._components[order], return_index=True, return_counts=True)
        groups = [order[start : start + size] for start, size in zip(starts, sizes, strict=True) if size > 1]
        return sorted(groups, key=lambda group: (-len(group), int(group[0])))

    def _join(self) -> None:
        left, right = (self._components[np.concatenate(side)] for side in zip(*self._pairs, strict=True))
        graph = coo_array((np.ones(len(left), dtype=np.bool_), (left, right)), shape=(self._count, self._count))
        self._components = connected_components(graph, directed=False)[1].astype(np.int64)[self._components]
        self._pairs, self._waiting = [NO_PAIRS], 0


def _find_first_copies(index: SearchIndex) -> Positions:
    """Returns for each image the position of the first one with the same content, which may be its own."""
    contents = np.array([item.sha256 for item in index.list_items()], dtype="S64")
    _, firsts, contents_of = np.unique(contents, return_index=True, return_inverse=True)
    return firsts[contents_of].astype(np.int64)
