"""The revisited protocol over several queries, against `measure_judged` of each ranking."""

import math

import numpy as np
import pytest

from indistill.errors import DataError
from indistill.retrieval.evaluation.deployed import Deployment
from indistill.retrieval.evaluation.ground_truth import Judgement, list_judged, measure_judged
from indistill.retrieval.evaluation.judged import (
    list_judged_queries,
    make_judged_task,
    measure_judged_deployed,
    measure_judged_exactly,
    settle_empty,
)
from indistill.retrieval.evaluation.metrics import QueryFigures

KS = (1, 3)
COUNT = 40
DEPTH = 12


def make_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[Judgement | None]]:
    """Gallery, three queries, and a judgement of the first and the last."""
    random = np.random.default_rng(seed)
    gallery, queries = random.normal(size=(COUNT, 4)), random.normal(size=(3, 4))
    gallery[7] = gallery[3]  # a tie
    parts = [np.array_split(random.permutation(COUNT)[:18], 3) for _ in range(2)]
    first, last = (Judgement(*map(np.sort, part)) for part in parts)
    return gallery.astype(np.float32), queries.astype(np.float32), [first, None, last]


def rank(gallery: np.ndarray, query: np.ndarray) -> np.ndarray:
    cosines = [float(row @ query / np.linalg.norm(row)) for row in gallery.astype(np.float64)]
    return np.array(sorted(range(len(cosines)), key=lambda i: (-cosines[i], i)))


def test_a_task_is_of_unit_vectors_without_classes() -> None:
    gallery, queries, _ = make_case()
    task = make_judged_task(gallery, queries)
    assert np.linalg.norm(task.gallery, axis=1) == pytest.approx(np.ones(COUNT), rel=1e-5)
    assert task.queries[1] * np.linalg.norm(queries[1]) == pytest.approx(queries[1], rel=1e-5)
    assert (task.gallery_labels.tolist(), task.query_labels.tolist()) == ([0] * COUNT, [0] * 3)
    assert task.gallery_labels.dtype == task.query_labels.dtype == np.int64
    assert task.own is None


def test_exact_figures_are_those_of_each_judged_querys_ranking() -> None:
    gallery, queries, judgements = make_case()
    found = measure_judged_exactly(make_judged_task(gallery, queries), judgements, KS)
    assert found.queries.tolist() == list_judged_queries(judgements).tolist() == [0, 2]
    assert found.names == list_judged(KS)
    expected = [measure_judged(rank(gallery, queries[i]), judgements[i], KS) for i in (0, 2)]
    assert found.values == pytest.approx(np.array(expected))
    assert all(len(part) == 2 and np.isnan(part).all() for part in (found.best, found.worst, found.cut))


def test_no_judged_query_is_a_list_of_no_positions() -> None:
    assert list_judged_queries([None, None]).tolist() == []
    assert list_judged_queries([None]).dtype == np.int64


def test_equal_cosines_are_ranked_by_gallery_position() -> None:
    gallery, queries, judgements = np.eye(4, dtype=np.float32)[np.arange(COUNT) % 4], *make_case()[1:]
    found = measure_judged_exactly(make_judged_task(gallery, queries), judgements, KS)
    expected = [measure_judged(rank(gallery, queries[i]), judgements[i], KS) for i in (0, 2)]
    assert found.values == pytest.approx(np.array(expected))


def test_deployed_figures_are_of_what_an_index_returns() -> None:
    gallery, queries, judgements = make_case()
    task, ids = make_judged_task(gallery, queries), np.arange(COUNT) * 2 + 5

    def search(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns all but the nearest."""
        order = np.argsort(-(vectors @ task.gallery.T), axis=1, kind="stable")[:, 1 : k + 1]
        return np.zeros(order.shape, np.float32), ids[order]

    found = measure_judged_deployed(task, judgements, (1, 3, DEPTH + 1), Deployment(search, ids, DEPTH))
    assert found.figures.queries.tolist() == [0, 2]
    assert found.ks == [1, 3, DEPTH]  # a K beyond the depth says nothing of the search
    rankings = [rank(gallery, queries[i])[1 : DEPTH + 1] for i in (0, 2)]
    expected = [measure_judged(r, judgements[i], (1, 3, DEPTH + 1)) for i, r in zip((0, 2), rankings, strict=True)]
    assert found.figures.values == pytest.approx(np.array(expected))
    assert found.search_recall == pytest.approx(np.array([[0, 2 / 3, (DEPTH - 1) / DEPTH]] * 2))
    whole = measure_judged_deployed(task, judgements, (DEPTH,), Deployment(search, ids, DEPTH))
    assert whole.ks == [DEPTH]


def make_figures() -> QueryFigures:
    values = np.array([[0.5, 0.25, math.nan], [1.0, math.nan, math.nan]])
    rest = (np.full(2, x) for x in (0.1, 0.2, 0.3))
    return QueryFigures(np.array([1, 2]), ["map_easy", "map_medium", "map_hard"], values, *rest)


def test_queries_without_a_positive_image_are_skipped_or_count_zero() -> None:
    figures = make_figures()
    assert settle_empty(figures, "skip", ["a", "b", "c"]) is figures
    zeros = settle_empty(figures, "zero", ["a", "b", "c"])
    assert zeros.values.tolist() == [[0.5, 0.25, 0], [1, 0, 0]]
    for name in ("queries", "names", "best", "worst", "cut"):
        assert getattr(zeros, name) is getattr(figures, name)


def test_queries_without_a_positive_image_may_be_an_error_that_names_the_first() -> None:
    words = r"^query 'b' has no positive image in the setup hard: mend the ground truth, or count it by --empty skip or"
    with pytest.raises(DataError, match=words):
        settle_empty(make_figures(), "error", ["a", "b", "c"])
    full = QueryFigures(np.array([0]), ["map_easy"], np.ones((1, 1)), *(np.ones(1),) * 3)
    assert settle_empty(full, "error", ["a"]) is full
