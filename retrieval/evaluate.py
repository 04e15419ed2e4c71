"""The two evaluations, by cosine and by Euclidean distance, of vectors with class names. Needs no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from indistill.errors import DataError
from indistill.retrieval.metrics import (
    DEFAULT_KS,
    Evaluation,
    Labels,
    Metric,
    Vectors,
    evaluate_vectors,
    normalise_rows,
    rank_relevant,
)

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


@dataclass(frozen=True)
class LabelledVectors:
    """Vectors (N, D) and the class name of each, None where it has none."""

    vectors: Vectors
    labels: Sequence[str | None]


def evaluate_retrieval(
    gallery: LabelledVectors,
    queries: LabelledVectors,
    ks: Sequence[int] = DEFAULT_KS,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[Metric, Evaluation]:
    """Returns the evaluation of each metric; relevant is what has the same class name.

    Args:
        gallery: what is searched.
        queries: what is looked for.
        ks: the K of precision@K and recall@K.
        on_progress: called with the number of queries just done, for each metric.

    Raises:
        DataError: the vectors are not finite, or no query has a relevant image.
    """
    for name, part in (("gallery", gallery), ("queries", queries)):
        if not np.isfinite(part.vectors).all():
            raise DataError(f"the model gives vectors that are not finite for the {name}")
    classes = {label: i for i, label in enumerate(sorted({label for label in gallery.labels if label is not None}))}
    gallery_labels, query_labels = _number(gallery.labels, classes), _number(queries.labels, classes)
    if not np.isin(query_labels[query_labels >= 0], gallery_labels).any():
        raise DataError("no query has a class of the gallery: both need a sub-folder for each class, of the same names")
    return {
        metric: evaluate_vectors(
            gallery.vectors, gallery_labels, queries.vectors, query_labels, metric, ks, on_progress
        )
        for metric in METRICS
    }


def measure_map_at_r(gallery: Vectors, gallery_labels: Labels, queries: Vectors, query_labels: Labels) -> float:
    """Returns `map@r` by cosine alone, as a training measures its held-out images; see `evaluate_vectors`."""
    return evaluate_vectors(gallery, gallery_labels, queries, query_labels, "cosine", ks=()).metrics["map@r"]


def measure_map_among(vectors: Vectors, labels: Labels) -> float:
    """Returns `map` by cosine where each image is looked for among all the others.

    Args:
        vectors: (N, D).
        labels: (N,); an image that is alone in its class counts nowhere.

    Raises:
        DataError: every image is alone in its class.
    """
    order = np.argsort(labels, kind="stable")  # relevant items stand side by side
    unit, grouped = normalise_rows(vectors)[order], labels[order]
    starts, ends = (np.searchsorted(grouped, grouped, side=side) for side in ("left", "right"))
    precisions = []
    for query in np.flatnonzero(ends - starts > 1).tolist():
        scores, positions = (np.delete(values, query) for values in (unit @ unit[query], order))
        ranks = rank_relevant(scores, int(starts[query]), int(ends[query]) - 1, positions)
        precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    if not precisions:
        raise DataError("every image is alone in its class: two images of a class at least are needed for map")
    return float(np.mean(precisions))


def _number(labels: Sequence[str | None], classes: dict[str, int]) -> Labels:
    return np.array([-1 if label is None else classes.get(label, -1) for label in labels], dtype=np.int64)
