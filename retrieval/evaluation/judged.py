"""The revisited protocol over a set of queries: by exact search, and by what an index returns. Needs no torch."""

from collections.abc import Sequence

import numpy as np

from indistill.errors import DataError
from indistill.retrieval.evaluation.deployed import DeployedFigures, Deployment, measure_search_recall, search_blocks
from indistill.retrieval.evaluation.evaluate import Empty
from indistill.retrieval.evaluation.ground_truth import Judgement, list_judged, measure_judged
from indistill.retrieval.evaluation.metrics import Figures, QueryFigures, Task, Vectors, normalise_rows
from indistill.retrieval.evaluation.ranks import Ranks


def make_judged_task(gallery: Vectors, queries: Vectors) -> Task:
    """Returns a task of unit vectors without classes."""
    nothing = (np.zeros(len(part), dtype=np.int64) for part in (gallery, queries))
    gallery_labels, query_labels = nothing
    return Task(normalise_rows(gallery), gallery_labels, normalise_rows(queries), query_labels)


def measure_judged_exactly(task: Task, judgements: Sequence[Judgement | None], ks: Sequence[int]) -> QueryFigures:
    """Returns the figures of each judged query over the whole ranking by cosine; see `list_judged`.

    Args:
        task: unit vectors; its labels are not read.
        judgements: of each query, None for one that is left out.
        ks: the K of mp@K.
    """
    chosen = list_judged_queries(judgements)
    rows = []
    for query in chosen.tolist():
        ranking = np.argsort(-(task.gallery @ task.queries[query]), kind="stable")
        rows.append(_measure(ranking, judgements[query], ks))
    return _gather(chosen, rows, ks)


def measure_judged_deployed(
    task: Task, judgements: Sequence[Judgement | None], ks: Sequence[int], deployment: Deployment
) -> DeployedFigures:
    """Returns the figures of each judged query over what an index returns, divided by all positive images."""
    chosen = list_judged_queries(judgements)
    recall_ks = sorted({*(k for k in ks if k <= deployment.depth), deployment.depth})
    rows, recall = [], []
    for block, scores, found in search_blocks(task, deployment, chosen):
        for query, exact, positions in zip(block.tolist(), scores, found, strict=True):
            rows.append(_measure(positions, judgements[query], ks))
            recall.append(measure_search_recall(exact, positions, recall_ks))
    return DeployedFigures(_gather(chosen, rows, ks), recall_ks, np.array(recall))


def list_judged_queries(judgements: Sequence[Judgement | None]) -> Ranks:
    """Returns the positions of the queries that have a judgement."""
    return np.array([i for i, judgement in enumerate(judgements) if judgement is not None], dtype=np.int64)


def settle_empty(figures: QueryFigures, empty: Empty, names: Sequence[str]) -> QueryFigures:
    """Returns the figures with what has no positive image left out as NaN, or as zero.

    Args:
        figures: NaN where a setup has no positive image.
        empty: what is done with these.
        names: of the queries.

    Raises:
        DataError: there is such a setup, and must not be.
    """
    rows, columns = np.nonzero(np.isnan(figures.values))
    if empty == "skip" or not len(rows):
        return figures
    if empty == "error":
        setup = figures.names[columns[0]].removeprefix("map_")
        raise DataError(
            f"query '{names[figures.queries[rows[0]]]}' has no positive image in the setup {setup}: mend the ground "
            "truth, or count it by --empty skip or zero"
        )
    values = np.nan_to_num(figures.values)
    return QueryFigures(figures.queries, figures.names, values, figures.best, figures.worst, figures.cut)


def _measure(ranking: Ranks, judgement: Judgement | None, ks: Sequence[int]) -> Figures:
    assert judgement is not None
    return measure_judged(ranking, judgement, ks)


def _gather(queries: Ranks, rows: Sequence[Figures], ks: Sequence[int]) -> QueryFigures:
    values = np.array(rows)
    nothing = np.full(len(rows), np.nan)
    return QueryFigures(queries, list_judged(ks), values, nothing, nothing, nothing)
