"""How close one embedding is to another of the same images, without labels: see docs/report.md. Needs no torch.

Teacher and student have widths of their own, so most figures compare what each says of the images among themselves. All
of them take unit vectors, as an index does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indistill.errors import DataError

NEIGHBOURS = 10
MINIMUM_IMAGES = 2 * NEIGHBOURS
PAIRS = 100_000
BLOCK_BYTES = 64 * 2**20  # of cosines held at a time

Vectors = NDArray[np.float32]
Values = NDArray[np.float64]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class EmbeddedImages:
    """Unit vectors (N, D), and the positions (N, NEIGHBOURS) of the nearest others of each, the nearest first."""

    vectors: Vectors
    neighbours: Positions


@dataclass(frozen=True)
class Closeness:
    """How close an embedding is to a reference; one means equal, but for `cosine_difference`, where zero does.

    Attributes:
        neighbour_overlap: share of the nearest neighbours that both have, mean over the images.
        rank_correlation: Spearman's, of the distances of pairs of images.
        linear_cka: linear centred kernel alignment.
        cosine_correlation: Pearson's, of the cosines of pairs of images.
        cosine_difference: mean absolute difference of the cosines of pairs of images.
        rotated_cosine: mean cosine with the reference after the best rotation.
        mapped_cosine: mean cosine with the reference after the best linear map.
    """

    neighbour_overlap: float
    rank_correlation: float
    linear_cka: float
    cosine_correlation: float
    cosine_difference: float
    rotated_cosine: float
    mapped_cosine: float


def prepare_vectors(vectors: Vectors, name: str) -> EmbeddedImages:
    """Returns embeddings (N, D) with length one, and their neighbours.

    Raises:
        DataError: there are too few of them, or they are not finite; `name` says whose they are.
    """
    if len(vectors) < MINIMUM_IMAGES:
        raise DataError(f"{MINIMUM_IMAGES} readable images at least are needed to say how close, not {len(vectors)}")
    if not np.isfinite(vectors).all():
        raise DataError(f"the {name} gives vectors that are not finite")
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return EmbeddedImages(unit, find_neighbours(unit, NEIGHBOURS))


def find_neighbours(vectors: Vectors, count: int) -> Positions:
    """Returns the positions (N, count) of the rows of largest cosine with each row, itself left out.

    The search is exact; equal cosines are ranked by position.

    Args:
        vectors: (N, D) unit vectors, N above `count`.
        count: of neighbours.
    """
    total = len(vectors)
    found = np.empty((total, count), dtype=np.int64)
    block = max(1, BLOCK_BYTES // (4 * total))
    for start in range(0, total, block):
        cosines = vectors[start : start + block] @ vectors.T
        for row, values in enumerate(cosines, start):
            values[row] = -np.inf
            last = np.partition(values, total - count)[total - count]
            above = np.flatnonzero(values > last)
            chosen = np.concatenate((above, np.flatnonzero(values == last)[: count - len(above)]))
            found[row] = chosen[np.lexsort((chosen, -values[chosen]))]
    return found


def measure_overlaps(first: Positions, second: Positions) -> Values:
    """Returns the share (N,) of the neighbours (N, K) that both have, for each image."""
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)
    overlaps: Values = shared.mean(axis=1)
    return overlaps


def measure_closeness(reference: EmbeddedImages, other: EmbeddedImages, seed: int = 0) -> Closeness:
    """Returns how close an embedding is to a reference of the same images in the same order.

    Args:
        reference: the teacher's, say.
        other: the student's, say.
        seed: of the pairs of images, where there are too many to take them all.
    """
    pairs = sample_pairs(len(reference.vectors), PAIRS, seed)
    x, y = (_compute_cosines(part.vectors, pairs) for part in (reference, other))
    return Closeness(
        neighbour_overlap=float(measure_overlaps(reference.neighbours, other.neighbours).mean()),
        rank_correlation=correlate_ranks(x, y),
        linear_cka=compute_linear_cka(reference.vectors, other.vectors),
        cosine_correlation=correlate(x, y),
        cosine_difference=float(np.abs(x - y).mean()),
        rotated_cosine=measure_mapped_cosine(reference.vectors, other.vectors, rotation=True),
        mapped_cosine=measure_mapped_cosine(reference.vectors, other.vectors, rotation=False),
    )


def sample_pairs(count: int, limit: int, seed: int) -> tuple[Positions, Positions]:
    """Returns both positions of all pairs of different images, or of `limit` pairs drawn with replacement."""
    if count * (count - 1) // 2 <= limit:
        first, second = np.triu_indices(count, 1)
        return first, second
    generator = np.random.default_rng(seed)
    first = generator.integers(count, size=limit)
    return first, (first + generator.integers(1, count, size=limit)) % count


def correlate(x: Values, y: Values) -> float:
    """Returns Pearson's correlation, or zero where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def correlate_ranks(x: Values, y: Values) -> float:
    """Returns Spearman's correlation, equal values with their mean rank, or zero where either is constant."""
    from scipy.stats import rankdata

    return correlate(rankdata(x), rankdata(y))


def compute_linear_cka(x: Vectors, y: Vectors) -> float:
    """Returns the linear centred kernel alignment of (N, D) and (N, D'), in [0, 1]; zero where either is constant.

    Reference: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", section 3, the form
    with the features' products.
    """
    centred_x, centred_y = (values - values.mean(axis=0) for values in (x.astype(np.float64), y.astype(np.float64)))
    scale = np.linalg.norm(centred_x.T @ centred_x) * np.linalg.norm(centred_y.T @ centred_y)
    return float(np.linalg.norm(centred_x.T @ centred_y) ** 2 / scale) if scale > 1e-12 else 0.0


def measure_mapped_cosine(reference: Vectors, other: Vectors, *, rotation: bool) -> float:
    """Returns the mean cosine of the reference with the mapped other embedding.

    The map is fitted on the images at even positions and measured on those at odd ones.

    Args:
        reference: (N, D), unit vectors.
        other: (N, D').
        rotation: the map is orthogonal (of the smaller width, where widths differ), else any linear one.

    Reference: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
    """
    target, source = reference[::2].astype(np.float64), other[::2].astype(np.float64)
    if rotation:
        left, _, right = np.linalg.svd(source.T @ target, full_matrices=False)
        fitted = left @ right  # (D', D)
    else:
        fitted = np.linalg.lstsq(source, target, rcond=None)[0]
    mapped = other[1::2] @ fitted
    lengths = np.maximum(np.linalg.norm(mapped, axis=1), 1e-12)
    return float(((mapped * reference[1::2]).sum(axis=1) / lengths).mean())


def _compute_cosines(vectors: Vectors, pairs: tuple[Positions, Positions]) -> Values:
    block = max(1, BLOCK_BYTES // (8 * vectors.shape[1]))
    parts = [
        np.einsum("nd,nd->n", vectors[first], vectors[second], dtype=np.float64)
        for first, second in (
            (pairs[0][start : start + block], pairs[1][start : start + block])
            for start in range(0, len(pairs[0]), block)
        )
    ]
    return np.concatenate(parts)
