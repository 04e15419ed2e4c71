"""The two evaluations, by cosine and by Euclidean distance, of vectors with class names. Needs no torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from indistill.errors import DataError
from indistill.retrieval.evaluation.metrics import (
    DEFAULT_KS,
    JUNK,
    UNLABELLED,
    Evaluation,
    Labels,
    Metric,
    QueryFigures,
    Task,
    Vectors,
    average_figures,
    evaluate_vectors,
    measure_queries,
    normalise_rows,
)
from indistill.retrieval.evaluation.ranks import rank_relevant

Empty = Literal["skip", "zero", "error"]
WITHOUT_CLASSES = (
    "without classes, name what is alike with --queries and --ground-truth FILE, or see how close a student is to its "
    "teacher by 'indistill report RUN'"
)
METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


@dataclass(frozen=True)
class LabelledVectors:
    """Vectors (N, D), the class name of each, None where it has none, and where they are needed the images' names."""

    vectors: Vectors
    labels: Sequence[str | None]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Protocol:
    """How a set of queries is evaluated.

    Attributes:
        leave_one_out: the queries are the gallery's own items, each left out of its own ranking.
        junk: a class that is taken out of every ranking, and whose queries are none.
        empty: queries without a relevant item are skipped, count as zero, or are an error.
    """

    leave_one_out: bool = False
    junk: str | None = None
    empty: Empty = "skip"


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
    task = make_task(gallery, queries)
    return {
        metric: average_figures(measure_queries(task, metric, ks, on_progress=on_progress), len(task.queries))
        for metric in METRICS
    }


def make_task(gallery: LabelledVectors, queries: LabelledVectors, protocol: Protocol | None = None) -> Task:
    """Returns what is looked for in what, by numbers.

    Args:
        gallery: what is searched.
        queries: what is looked for; the gallery itself where each is left out of its own ranking.
        protocol: default the queries are no part of the gallery, and there is no junk.

    Raises:
        DataError: the vectors are not finite, no query has a relevant image, there is no such class as the junk, or
            a query has no relevant image where that is an error.
    """
    protocol = protocol or Protocol()
    for name, part in (("gallery", gallery), ("queries", queries)):
        if not np.isfinite(part.vectors).all():
            raise DataError(f"the model gives vectors that are not finite for the {name}")
    classes = {label: i for i, label in enumerate(sorted({label for label in gallery.labels if label is not None}))}
    if protocol.junk is not None:
        if protocol.junk not in classes:
            raise DataError(f"--junk '{protocol.junk}': the gallery has no such class; it has {_list_some(classes)}")
        classes[protocol.junk] = JUNK
    own = np.arange(len(queries.vectors)) if protocol.leave_one_out else None
    task = Task(
        gallery.vectors, _number(gallery.labels, classes), queries.vectors, _number(queries.labels, classes), own
    )
    empty = list_empty(task)
    if len(empty) == np.count_nonzero(task.query_labels != JUNK):
        if not classes:
            raise DataError(
                f"the gallery has no classes: a sub-folder for each is needed, or labels; {WITHOUT_CLASSES}"
            )
        if own is not None:
            raise DataError("every image is alone in its class: two images of a class at least are needed")
        raise DataError("no query has a class of the gallery: both need a sub-folder for each class, of the same names")
    if protocol.empty == "error" and len(empty):
        first = f"{queries.names[empty[0]]} of class" if len(queries.names) else "class"
        raise DataError(
            f"{len(empty)} queries have no relevant image in the gallery, the first is {first} "
            f"'{queries.labels[empty[0]]}': mend the data, or count them by --empty skip or zero"
        )
    return task


def list_empty(task: Task) -> Labels:
    """Returns the queries that are no junk and have no relevant item in the gallery."""
    return np.flatnonzero((task.count_relevant() == 0) & (task.query_labels != JUNK))


def count_empty_as_zero(figures: QueryFigures, empty: Labels) -> QueryFigures:
    """Returns the figures with a row of zeros for each query without a relevant item, in the order of the queries."""
    queries = np.concatenate((figures.queries, empty))
    order, zeros = np.argsort(queries), np.zeros(len(empty))
    values = np.concatenate((figures.values, np.zeros((len(empty), len(figures.names)))))[order]
    parts = (np.concatenate((part, zeros))[order] for part in (figures.best, figures.worst, figures.cut))
    return QueryFigures(queries[order], figures.names, values, *parts)


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
    numbers = [UNLABELLED if label is None else classes.get(label, UNLABELLED) for label in labels]
    return np.array(numbers, dtype=np.int64)


def _list_some(names: Iterable[str], limit: int = 10) -> str:
    known = list(names)
    return ", ".join(known[:limit]) + (f" and {len(known) - limit} more" if len(known) > limit else "")
