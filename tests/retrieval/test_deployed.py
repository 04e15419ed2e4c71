"""Oracles: numbers by hand, a search by loops, and the exact metrics, which an exact index at full depth must have."""

import faiss
import numpy as np
import pytest
from scipy import stats

from indistill.errors import DataError, IndexFolderError
from indistill.retrieval.evaluation.deployed import Deployment, measure_deployed, measure_found, measure_search_recall
from indistill.retrieval.evaluation.evaluate import (
    LabelledVectors,
    Protocol,
    count_empty_as_zero,
    list_empty,
    make_task,
)
from indistill.retrieval.evaluation.intervals import bootstrap_means
from indistill.retrieval.evaluation.metrics import JUNK, Task, measure_queries, normalise_rows
from indistill.retrieval.evaluation.ranks import rank_with_bounds

KS = (1, 5, 10)


def make_labelled(seed: int, size: int, count: int, classes: int = 5) -> tuple[LabelledVectors, LabelledVectors]:
    random = np.random.default_rng(seed)

    def make(number: int) -> LabelledVectors:
        labels = random.integers(0, classes, number)
        vectors = random.normal(size=(number, 6)) + np.eye(classes, 6)[labels]
        return LabelledVectors(normalise_rows(vectors.astype(np.float32)), [f"class {label}" for label in labels])

    return make(size), make(count)


def search_exactly(vectors: np.ndarray, ids: np.ndarray, lost: tuple[int, ...] = ()):
    """A search by a full sort, which never returns what is lost."""

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ vectors.T
        scores[:, list(lost)] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, order, 1)
        return found, np.where(found > -np.inf, ids[order], -1)

    return search


PROTOCOLS = {
    "queries": Protocol(),
    "leave one out": Protocol(leave_one_out=True),
    "junk": Protocol(junk="class 1"),
    "junk, leave one out": Protocol(leave_one_out=True, junk="class 1"),
}


def list_rankings(gallery: LabelledVectors, queries: LabelledVectors, protocol: Protocol) -> dict[int, list[bool]]:
    """By loops: for each query, whether the items of its ranking are relevant."""
    rankings = {}
    for query, label in enumerate(queries.labels):
        scores = queries.vectors[query] @ gallery.vectors.T
        ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        kept = [i for i in ranking if gallery.labels[i] != protocol.junk]
        kept = [i for i in kept if not (protocol.leave_one_out and i == query)]
        relevant = [gallery.labels[i] == label for i in kept]
        if label != protocol.junk and any(relevant):
            rankings[query] = relevant
    return rankings


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_protocols_are_as_by_loops_and_an_exact_index_of_full_depth_agrees(protocol: Protocol) -> None:
    gallery, queries = make_labelled(0, 150, 70)
    if protocol.leave_one_out:
        queries = gallery
    task = make_task(gallery, queries, protocol)
    exact = measure_queries(task, "cosine", KS, depth=20)
    ids = np.arange(150) * 3 + 7
    deployed = measure_deployed(task, Deployment(search_exactly(gallery.vectors, ids), ids, 150), KS)
    rankings = list_rankings(gallery, queries, protocol)
    assert exact.queries.tolist() == deployed.figures.queries.tolist() == list(rankings)
    for row, relevant in enumerate(rankings.values()):
        precisions = [sum(relevant[: i + 1]) / (i + 1) if hit else 0 for i, hit in enumerate(relevant)]
        assert exact.read("map")[row] == pytest.approx(sum(precisions) / sum(relevant))
        assert exact.cut[row] == pytest.approx(sum(precisions[:20]) / sum(relevant))
        assert exact.read("precision@5")[row] == pytest.approx(sum(relevant[:5]) / 5)
    for name in deployed.figures.names:
        assert deployed.figures.read(name) == pytest.approx(exact.read(name), abs=1e-9)
    assert (deployed.search_recall == 1).all()


@pytest.mark.parametrize("alone", [False, True])
def test_an_index_is_asked_for_its_depth_and_for_the_query_itself(alone: bool) -> None:
    gallery, _ = make_labelled(5, 70, 1)
    task, ids = make_task(gallery, gallery, Protocol(leave_one_out=alone)), np.arange(70)
    asked: list[tuple[int, int]] = []

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append((len(queries), k))
        return search_exactly(gallery.vectors, ids)(queries, k)

    progress: list[int] = []
    found = measure_deployed(task, Deployment(search, ids, 5), KS, progress.append)
    assert asked == [(64, 5 + alone), (6, 5 + alone)]
    assert progress == [64, 6]
    assert found.figures.names == ["map", "precision@1", "precision@5", "recall@1", "recall@5"]  # within the depth
    for part in (found.figures.best, found.figures.worst, found.figures.cut):
        assert part.tolist() == found.figures.read("map").tolist()


def test_an_index_that_loses_items_has_a_lower_map_and_recall_as_by_loops() -> None:
    gallery, queries = make_labelled(1, 120, 40)
    ids, lost = np.arange(1, 121), (3, 30, 31, 77)
    task = make_task(gallery, queries)
    found = measure_deployed(task, Deployment(search_exactly(gallery.vectors, ids, lost), ids, 25), KS)
    assert found.ks == [1, 5, 10, 25]
    for row in range(40):
        scores = queries.vectors[row] @ gallery.vectors.T
        whole = np.argsort(-scores)
        kept = [i for i in whole.tolist() if i not in lost][:25]
        relevant = np.array([gallery.labels[i] == queries.labels[row] for i in kept])
        total = gallery.labels.count(queries.labels[row])
        expected = sum(relevant[: i + 1].mean() for i in np.flatnonzero(relevant)) / total
        assert found.figures.read("map")[row] == pytest.approx(expected)
        for column, k in enumerate(found.ks):
            share = len(set(whole[:k].tolist()) & set(kept[:k])) / k
            assert found.search_recall[row, column] == pytest.approx(share)
    assert found.search_recall.mean() < 1


def test_a_search_of_few_cells_by_faiss_is_below_exact_search_and_all_cells_are_level_with_it() -> None:
    gallery, queries = make_labelled(3, 2000, 100)
    task, ids = make_task(gallery, queries), np.arange(2000) * 2
    index = faiss.index_factory(6, "IVF32,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(gallery.vectors)
    index.add_with_ids(gallery.vectors, ids)
    exact = measure_queries(task, "cosine", KS, depth=50)
    found = {}
    for cells in (1, 32):
        index.nprobe = cells
        found[cells] = measure_deployed(task, Deployment(index.search, ids, 50), KS)
    assert found[32].figures.read("map") == pytest.approx(exact.cut, abs=1e-4)
    assert found[32].search_recall.min() == 1
    assert found[1].figures.read("map").mean() < exact.cut.mean()
    assert 0.2 < found[1].search_recall.mean() < 0.95


def test_leave_one_out_equals_pytorch_metric_learning() -> None:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    gallery, _ = make_labelled(4, 90, 1)
    figures = measure_queries(make_task(gallery, gallery, Protocol(leave_one_out=True)), "cosine", KS)
    scores = gallery.vectors @ gallery.vectors.T
    np.fill_diagonal(scores, 2)  # it takes the first of each ranking for the query itself
    order = np.argsort(-scores, axis=1, kind="stable")

    class Ranking:
        def __call__(self, query, k, reference, *_) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(order[:, 1 : k + 1].shape), torch.from_numpy(order[:, 1 : k + 1])

    names = {"mean_average_precision": "map", "mean_average_precision_at_r": "map@r", "r_precision": "r_precision"}
    calculator = AccuracyCalculator(tuple(names), k=None, knn_func=Ranking(), device=torch.device("cpu"))
    numbers = torch.tensor([int(label[-1]) for label in gallery.labels])
    oracle = calculator.get_accuracy(torch.from_numpy(gallery.vectors), numbers, ref_includes_query=True)
    for theirs, ours in names.items():
        assert figures.read(ours).mean() == pytest.approx(oracle[theirs], abs=1e-6)


def test_figures_of_what_was_found_by_hand() -> None:
    # Two of the four relevant items were found, at the ranks 1 and 4.
    assert measure_found(np.array([1, 4]), 4, (2, 5)) == [(1 + 2 / 4) / 4, 1 / 2, 2 / 5, 1, 1]
    assert measure_found(np.array([], dtype=int), 4, (2,)) == [0, 0, 0]


def test_a_tie_is_no_miss_and_a_farther_item_is_one() -> None:
    exact = np.array([0.9, 0.5, 0.5, 0.1], dtype=np.float32)
    assert measure_search_recall(exact, np.array([0, 2]), (1, 2)) == [1, 1]
    assert measure_search_recall(exact, np.array([0, 3]), (1, 2)) == [1, 1 / 2]
    assert measure_search_recall(exact, np.array([0]), (2,)) == [1 / 2]
    assert measure_search_recall(exact, np.array([0, 1, 2, 3]), (9,)) == [1]
    without = np.where(np.arange(4) == 0, -np.inf, exact).astype(np.float32)
    assert measure_search_recall(without, np.array([1, 2, 3]), (9,)) == [1]


def test_an_id_that_the_catalogue_has_not_is_an_error() -> None:
    gallery, queries = make_labelled(2, 10, 5, classes=1)
    search = search_exactly(gallery.vectors, np.arange(10) + 1)
    with pytest.raises(IndexFolderError, match="returns id 10, which its catalogue has not"):
        measure_deployed(make_task(gallery, queries), Deployment(search, np.arange(10), 10), KS)


def make_empty_case() -> tuple[LabelledVectors, LabelledVectors]:
    eye = np.eye(3, dtype=np.float32)
    return LabelledVectors(eye, ["a", "b", "c"]), LabelledVectors(eye, ["a", "x", "b"], ["1.png", "2.png", "3.png"])


def test_queries_without_a_match_are_skipped_or_count_as_zero() -> None:
    task = make_task(*make_empty_case())
    empty = list_empty(task)
    assert empty.tolist() == [1]
    figures = measure_queries(task, "cosine", (1,))
    assert figures.read("map").tolist() == pytest.approx([1, 1 / 3])
    counted = count_empty_as_zero(figures, empty)
    assert counted.queries.tolist() == [0, 1, 2]
    assert counted.read("map").tolist() == pytest.approx([1, 0, 1 / 3])
    assert counted.best[1] == counted.cut[1] == 0


def test_queries_without_a_match_are_an_error_where_they_must_not_be() -> None:
    with pytest.raises(DataError, match=r"1 queries have no relevant .* the first is 2\.png of class 'x'"):
        make_task(*make_empty_case(), Protocol(empty="error"))


def test_a_class_of_junk_is_no_query_and_must_exist() -> None:
    gallery, queries = make_empty_case()
    task = make_task(gallery, queries, Protocol(junk="b"))
    assert task.gallery_labels.tolist() == [0, JUNK, 2]
    assert list_empty(task).tolist() == [1]
    with pytest.raises(DataError, match="--junk 'z': the gallery has no such class; it has a, b, c"):
        make_task(gallery, queries, Protocol(junk="z"))


@pytest.mark.parametrize("seed", range(8))
def test_tie_bounds_are_those_of_the_best_and_the_worst_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 5, 60).astype(np.float32)
    start, end = 20, 20 + int(random.integers(1, 20))
    irrelevant = (np.arange(60) < start) | (np.arange(60) >= end)
    found = rank_with_bounds(scores, start, end, random.permutation(60))
    for bound, order in ((found.best, irrelevant), (found.worst, ~irrelevant)):
        ranking = np.lexsort((order, -scores))
        assert bound.tolist() == (1 + np.flatnonzero(~irrelevant[ranking])).tolist()
    assert (found.best <= found.ranks).all()
    assert (found.ranks <= found.worst).all()


def test_without_ties_the_bounds_are_the_ranks() -> None:
    found = rank_with_bounds(np.arange(9, dtype=np.float32), 3, 6, np.arange(9))
    assert found.ranks.tolist() == found.best.tolist() == found.worst.tolist() == [4, 5, 6]


def test_the_figures_hold_the_tie_bounds_of_each_query() -> None:
    gallery = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    task = Task(gallery, np.array([0, 1, 0]), gallery[:1], np.array([1]))
    figures = measure_queries(task, "cosine", (1,))
    assert (figures.best[0], figures.read("map")[0], figures.worst[0]) == (1, 1 / 2, 1 / 2)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).beta(2, 1, (80, 2))
    low, high = bootstrap_means(values, resamples=20_000)
    for column in range(2):
        oracle = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert (low[column], high[column]) == pytest.approx((oracle.low, oracle.high), abs=1.5e-3)


def test_the_interval_is_the_same_each_time_and_none_for_equal_figures() -> None:
    values = np.column_stack([np.full(30, 0.25), np.random.default_rng(0).random(30)])
    first, second = bootstrap_means(values), bootstrap_means(values)
    assert [bound.tolist() for bound in first] == [bound.tolist() for bound in second]
    assert first[0][0] == first[1][0] == 0.25
    assert first[0][1] < values[:, 1].mean() < first[1][1]
