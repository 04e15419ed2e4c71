"""Four oracles: definitions by loops, scikit-learn, pytorch-metric-learning, and numbers by hand."""

from itertools import permutations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from indistill.errors import DataError
from indistill.retrieval.evaluation.evaluate import LabelledVectors, evaluate_retrieval
from indistill.retrieval.evaluation.metrics import (
    JUNK,
    Task,
    compute_metrics,
    evaluate_vectors,
    list_metrics,
    normalise_rows,
)
from indistill.retrieval.evaluation.ranks import rank_relevant

KS = (1, 5, 10)


def make_case(seed: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vectors whose inner products have few values, so that most scores are tied."""
    random = np.random.default_rng(seed)
    size, count, classes = random.integers(2, 400), random.integers(1, 300), random.integers(1, 12)
    gallery = random.integers(-levels, levels + 1, (size, 2)).astype(np.float32)
    queries = random.integers(1, 3, (count, 2)).astype(np.float32)
    gallery_labels = random.integers(0, classes, size)
    query_labels = random.integers(0, classes, count)
    query_labels[0] = gallery_labels[0]
    return gallery, gallery_labels, queries, query_labels


def order_gallery(scores: np.ndarray) -> np.ndarray:
    """By score, then by gallery position."""
    return np.lexsort((np.arange(len(scores)), -scores))


def score(metric: str, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Scores in which tied items are exactly tied: small whole numbers, or their normalised products."""
    if metric == "cosine":
        return normalise_rows(queries) @ normalise_rows(gallery).T
    half = (gallery.astype(np.float64) ** 2).sum(1) / 2
    return queries @ gallery.T - half


def restate_paper11(relevant: np.ndarray, batch: int) -> tuple[float, float]:
    """method.md, `map_paper11`, one rank at a time; and the published top-100."""
    precision, hits = [], 0
    recall = []
    for rank, is_relevant in enumerate(relevant, start=1):
        hits += int(is_relevant)
        precision.append(hits / rank)
        recall.append(hits / int(relevant.sum()))
    for i in range(min(batch, len(precision)) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    total = 0.0
    for point in range(11):
        nearest, smallest = 0, 2.0
        for i, value in enumerate(recall):
            if abs(value - point / 10) < smallest:
                nearest, smallest = i, abs(value - point / 10)
        total += precision[nearest]
    return total / 11, precision[min(100, len(precision)) - 1]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(12))
def test_all_metrics_equal_their_definitions_with_ties(seed: int, metric) -> None:
    gallery, gallery_labels, queries, query_labels = make_case(seed, levels=1 + seed)
    found = evaluate_vectors(gallery, gallery_labels, queries, query_labels, metric, KS)
    rows = []
    for i, scores in enumerate(score(metric, queries, gallery)):
        relevant = gallery_labels[order_gallery(scores)] == query_labels[i]
        total = int(relevant.sum())
        if not total:
            continue
        precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
        batch = min(128, len(queries) - i // 128 * 128)
        paper11, top = restate_paper11(relevant, batch)
        rows.append(
            [
                (precision * relevant).sum() / total,
                paper11,
                (precision * relevant)[:total].sum() / total,
                relevant[:total].sum() / total,
                *(relevant[:k].sum() / k for k in KS),
                *(float(relevant[:k].any()) for k in KS),
                top,
            ]
        )
    assert found.queries == len(rows)
    assert found.skipped == len(queries) - len(rows)
    assert list(found.metrics) == list_metrics(KS)
    assert np.allclose(list(found.metrics.values()), np.mean(rows, axis=0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_map_equals_scikit_learns_average_precision(seed: int) -> None:
    gallery, gallery_labels, queries, query_labels = make_case(100 + seed, levels=3)
    found = evaluate_vectors(gallery, gallery_labels, queries, query_labels, "cosine", KS)
    values = []
    for i, scores in enumerate(score("cosine", queries, gallery)):
        relevant = gallery_labels == query_labels[i]
        if relevant.any():  # scikit-learn has no order among ties: give it the ranking itself
            place = np.empty(len(scores))
            place[order_gallery(scores)] = np.arange(len(scores), 0, -1)
            values.append(average_precision_score(relevant, place))
    assert found.metrics["map"] == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_map_at_r_and_r_precision_equal_pytorch_metric_learning(seed: int) -> None:
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    gallery, gallery_labels, queries, query_labels = make_case(200 + seed, levels=3)
    known = np.isin(query_labels, gallery_labels)
    queries, query_labels = queries[known], query_labels[known]
    found = evaluate_vectors(gallery, gallery_labels, queries, query_labels, "cosine", KS)
    order = np.stack([order_gallery(scores) for scores in score("cosine", queries, gallery)])

    class Ranking:
        def __call__(self, query, k, reference, *_) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(order[:, :k].shape), torch.from_numpy(order[:, :k])

    calculator = AccuracyCalculator(
        ("mean_average_precision_at_r", "r_precision", "mean_average_precision"),
        k=None,
        knn_func=Ranking(),
        device=torch.device("cpu"),
    )
    oracle = calculator.get_accuracy(
        torch.from_numpy(queries).double(),
        torch.from_numpy(query_labels),
        torch.from_numpy(gallery).double(),
        torch.from_numpy(gallery_labels),
    )
    assert found.metrics["map@r"] == pytest.approx(oracle["mean_average_precision_at_r"], abs=1e-9)
    assert found.metrics["r_precision"] == pytest.approx(oracle["r_precision"], abs=1e-9)


def test_metrics_by_hand() -> None:
    ranks = np.array([1, 3, 6])
    metrics = dict(zip(list_metrics((2, 5)), compute_metrics(ranks, 8, (2, 5), 128), strict=True))
    assert metrics["map"] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert metrics["map@r"] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics["r_precision"] == pytest.approx(2 / 3)
    assert metrics["precision@2"] == 0.5
    assert metrics["precision@5"] == 0.4
    assert metrics["recall@2"] == 1


@pytest.mark.parametrize(("found", "size"), [([1], 3), ([2], 4), ([3, 4], 4), ([101], 200), ([2, 100, 102], 150)])
@pytest.mark.parametrize("batch", [1, 2, 3, 100, 101, 102, 128])
def test_paper_figures_at_the_edges_of_a_batch(found: list[int], size: int, batch: int) -> None:
    names = list_metrics(())
    metrics = dict(zip(names, compute_metrics(np.array(found), size, (), batch), strict=True))
    relevant = np.isin(np.arange(1, size + 1), found)
    expected = restate_paper11(relevant, batch)
    assert (metrics["map_paper11"], metrics["precision_paper11@100"]) == pytest.approx(expected)


def test_ties_are_ranked_by_gallery_position() -> None:
    scores = np.array([0.5, 0.5, 0.5, 0.5, 0.9], dtype=np.float32)
    positions = np.array([3, 0, 1, 2, 4])  # the relevant items, first here, stand at 3 and 0 in the gallery
    assert rank_relevant(scores, 0, 2, positions).tolist() == [2, 5]


def test_zeros_of_both_signs_are_one_score() -> None:
    scores = np.array([-0.0, 0.0, -0.0], dtype=np.float32)
    assert rank_relevant(scores, 1, 2, np.arange(3)).tolist() == [2]


@pytest.mark.parametrize(
    ("relevant", "others"),
    [
        ((-1.0, 1.0, 300), (-2.0, 2.0, 5000)),  # irrelevant ones below the lowest and above the highest
        ((0.1, 0.1001, 50), (-1.0, 1.0, 5000)),
        ((-1e30, 1.0, 40), (0.0, 1.0, 3000)),  # one bucket holds nearly all
        ((-3e38, 3e38, 40), (-3e38, 3e38, 3000)),  # the range is beyond float32
        ((0.0, 1e-44, 9), (0.0, 1e-44, 50)),  # the range is denormal
        ((0.5, 0.5, 1), (0.0, 1.0, 100)),
        ((0.0, 1.0, 30), (0.0, 0.0, 0)),
    ],
)
def test_ranks_equal_those_of_a_full_sort_whatever_the_range(relevant, others) -> None:
    random = np.random.default_rng(0)
    parts = [random.uniform(low, high, count).astype(np.float32) for low, high, count in (others, relevant, others)]
    parts[2][::7] = random.choice(parts[1], len(parts[2][::7]))  # some irrelevant scores equal relevant ones
    scores = np.concatenate(parts)
    start, end = len(parts[0]), len(parts[0]) + len(parts[1])
    positions = random.permutation(len(scores))
    ranking = np.lexsort((positions, -scores))
    expected = 1 + np.flatnonzero((ranking >= start) & (ranking < end))
    assert rank_relevant(scores, start, end, positions).tolist() == expected.tolist()


def test_a_gallery_of_relevant_items_alone_is_perfect() -> None:
    gallery = np.ones((4, 2), dtype=np.float32)
    found = evaluate_vectors(gallery, np.zeros(4, int), gallery[:1], np.zeros(1, int), "cosine", (1,))
    assert found.metrics["map"] == found.metrics["map_paper11"] == 1


def test_queries_without_a_match_are_skipped_and_counted() -> None:
    gallery = LabelledVectors(np.eye(3, dtype=np.float32), ["a", "b", "c"])
    queries = LabelledVectors(np.eye(3, dtype=np.float32), ["a", "x", None])
    found = evaluate_retrieval(gallery, queries)["cosine"]
    assert (found.queries, found.skipped) == (1, 2)
    assert found.metrics["map"] == 1


@pytest.mark.parametrize("own", [False, True])
def test_chance_is_the_mean_over_all_orders(own: bool) -> None:
    labels = np.array([0, 0, 1, 0, JUNK, 2])
    vectors = np.eye(6, dtype=np.float32)
    task = Task(vectors, labels, vectors, labels, np.arange(6) if own else None)
    found = task.expect_by_chance()
    for query, label in enumerate(labels.tolist()):
        others = [other for i, other in enumerate(labels.tolist()) if other != JUNK and not (own and i == query)]
        precisions = []
        for order in permutations(others):
            relevant = np.array([other == label for other in order])
            if relevant.any():
                precisions.append(np.mean((np.cumsum(relevant) / np.arange(1, len(order) + 1))[relevant]))
        assert found[query] == pytest.approx(np.mean(precisions) if precisions else 0)


def test_chance_is_certainty_where_all_is_relevant() -> None:
    for count in (1, 2, 3):
        vectors, labels = np.eye(count, dtype=np.float32), np.zeros(count, int)
        assert Task(vectors, labels, vectors[:1], labels[:1]).expect_by_chance().tolist() == [pytest.approx(1)]


def test_sets_without_a_common_class_are_an_error() -> None:
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(DataError, match="no query has a class of the gallery"):
        evaluate_retrieval(LabelledVectors(vectors, ["a", "b"]), LabelledVectors(vectors, ["c", "d"]))
    with pytest.raises(DataError, match="not finite"):
        evaluate_retrieval(LabelledVectors(vectors * np.nan, ["a", "b"]), LabelledVectors(vectors, ["a", "b"]))


def test_blocks_of_queries_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, gallery_labels, queries, query_labels = make_case(7, levels=2)
    whole = evaluate_vectors(gallery, gallery_labels, queries, query_labels, "euclidean", KS)
    monkeypatch.setattr("indistill.retrieval.evaluation.metrics.BLOCK_QUERIES", 3)
    assert evaluate_vectors(gallery, gallery_labels, queries, query_labels, "euclidean", KS) == whole
