"""Groups of near-duplicates in an index, exact on the stored vectors. Reports only, and needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indistill.errors import InputError
from indistill.export.session import Embeddings
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.store.catalogue import CatalogueItem

Positions = NDArray[np.int64]
BLOCK = 1024  # images compared with as many others at once
ROUNDING = 1e-6  # of the cosine of two unit vectors in float32


@dataclass(frozen=True)
class Duplicate:
    """An image of a group.

    Attributes:
        item: as it is catalogued.
        score: its cosine to the first image of the group.
        copy_of: the id of the first image of the group with the same content, byte by byte; None for that one itself.
    """

    item: CatalogueItem
    score: float
    copy_of: int | None


def find_duplicates(
    index: SearchIndex, threshold: float, on_progress: Callable[[int], None] = lambda _: None
) -> list[list[Duplicate]]:
    """Returns the groups of images that have a cosine of the threshold at least to the first of their group.

    Images are taken by rising id: each joins the first group whose first image it is like, or begins one of its own.
    So no two of the first images and those without a group are near-duplicates: to keep these is to keep one of each.
    Chains do not make a group: an image that is like a member, but not like the first, is not of it. Files of equal
    content are always together.

    The largest group comes first, of equal ones that with the smallest id, and in each the ids rise. The memory is
    that of the vectors, of a hash for each, and of the groups' items.

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
    """Returns the groups of at least two rows of unit vectors (N, D), the largest first, positions rising.

    A row belongs to the first of the earlier rows that begin a group and have the threshold to it; else it begins one.

    Args:
        vectors: (N, D).
        threshold: the cosine that the members of a group have to its first row.
        copies: for each row (N,) an earlier one whose group is its own in any case, or itself.
        on_progress: called with the number of rows just done.
        block: rows compared with as many others at once.
    """
    count = len(vectors)
    copies = np.arange(count) if copies is None else copies
    firsts = np.arange(count)  # of each row's group
    leaders = np.empty(0, dtype=np.int64)
    for start in range(0, count, block):
        rows = np.arange(start, min(start + block, count))
        left = rows[copies[rows] == rows]
        for other in range(0, len(leaders), block):
            some = leaders[other : other + block]
            close = _are_close(vectors[left], vectors[some], threshold)
            found = close.any(axis=1)
            firsts[left[found]] = some[close[found].argmax(axis=1)]
            left = left[~found]
        close = _are_close(vectors[left], vectors[left], threshold)
        free = np.ones(len(left), dtype=np.bool_)
        for row in range(len(left)):
            if free[row]:
                joined = np.flatnonzero(close[row, row:] & free[row:]) + row
                firsts[left[joined]] = left[row]
                free[joined] = False
        leaders = np.concatenate([leaders, left[firsts[left] == left]])
        firsts[rows] = firsts[copies[rows]]
        on_progress(len(rows))
    order = np.argsort(firsts, kind="stable")
    _, starts, sizes = np.unique(firsts[order], return_index=True, return_counts=True)
    groups = [order[start : start + size] for start, size in zip(starts, sizes, strict=True) if size > 1]
    return sorted(groups, key=lambda group: (-len(group), int(group[0])))


def _are_close(vectors: Embeddings, others: Embeddings, threshold: float) -> NDArray[np.bool_]:
    """Returns which of the vectors (A, D) have the threshold to which of others (B, D); (A, B)."""
    close: NDArray[np.bool_] = vectors @ others.T >= threshold - ROUNDING
    return close


def _find_first_copies(index: SearchIndex) -> Positions:
    """Returns for each image the position of the first one with the same content, which may be its own."""
    contents = np.array([item.sha256 for item in index.list_items()], dtype="S64")
    _, firsts, contents_of = np.unique(contents, return_index=True, return_inverse=True)
    return firsts[contents_of].astype(np.int64)
