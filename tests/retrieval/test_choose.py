from dataclasses import replace

import numpy as np
import pytest

from indistill.errors import InputError
from indistill.retrieval.index_types.choose import Targets, choose_type
from indistill.retrieval.index_types.trials import Trial, hold_out
from indistill.retrieval.index_types.types import Vectors, make_faiss, search_faiss, set_parameters

COUNT, DIMENSION = 6000, 24


def draw_vectors(count: int, seed: int) -> Vectors:
    """Overlapping classes of unequal sizes: lists of IVF do not fall apart by class."""
    centres = np.random.default_rng(7).standard_normal((60, DIMENSION))
    generator = np.random.default_rng(seed)
    labels = np.minimum(generator.zipf(1.3, count), 60) - 1
    vectors = (centres[labels] + generator.standard_normal((count, DIMENSION))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = draw_vectors(COUNT, 0)


def measure_recall(factory: str, parameters: dict[str, int], queries: Vectors, k: int) -> float:
    """By a sort of all inner products."""
    index = make_faiss(factory, VECTORS, np.arange(COUNT))
    set_parameters(index, parameters)
    _, ids = search_faiss(index, queries, k)
    products = queries @ VECTORS.T
    thresholds = -np.sort(-products, axis=1)[:, k - 1 : k]
    return float((np.take_along_axis(products, ids, 1) >= thresholds - 1e-6).mean())


def test_few_vectors_are_searched_exactly() -> None:
    choice = choose_type(VECTORS, Targets())
    assert (choice.factory, choice.parameters, choice.recall) == ("IDMap,Flat", {}, 1)
    assert len(choice.trials) == 1
    assert choice.latency_ms == choice.trials[0].latency_ms > 0


@pytest.mark.parametrize("count", [1, 2, 9, 11, 700])
@pytest.mark.parametrize("exact_values", [0, 10**9])
def test_any_number_of_vectors_gives_a_choice(count: int, exact_values: int) -> None:
    choice = choose_type(VECTORS[:count], Targets(k=20), exact_values=exact_values)
    assert choice.recall >= 0.99


@pytest.mark.parametrize(("recall", "k"), [(0.8, 10), (0.95, 1), (0.99, 10), (1.0, 10)])
def test_the_recall_holds_on_queries_that_were_not_tried(recall: float, k: int) -> None:
    choice = choose_type(VECTORS, Targets(recall, k), exact_values=0)
    assert choice.recall >= recall
    assert measure_recall(choice.factory, choice.parameters, draw_vectors(1000, 1), k) >= recall - 0.01


def test_a_lower_recall_reads_less() -> None:
    read = []
    for recall in (0.7, 0.9, 0.99):
        choice = choose_type(VECTORS, Targets(recall), exact_values=0)
        read.append(next(t.read_bytes for t in choice.trials if (t.factory, t.parameters) == _name(choice)))
    assert read == sorted(read)
    assert len(set(read)) == 3
    assert read[0] < 4 * DIMENSION * COUNT / 10


def _name(choice: object) -> tuple[str, dict[str, int]]:
    return choice.factory, choice.parameters  # type: ignore[attr-defined]


def test_the_choice_reads_the_least_of_what_reaches_the_recall() -> None:
    choice = choose_type(VECTORS, Targets(0.9), exact_values=0)
    reached = [t for t in choice.trials if t.recall - t.recall_error >= 0.9]
    least = min(reached, key=lambda t: t.read_bytes)
    assert (least.factory, least.parameters) == _name(choice)
    assert any(t.recall < 0.9 for t in choice.trials)


def test_a_trial_measures_on_vectors_that_its_index_does_not_hold() -> None:
    """Were they in it, one list would find one of k=1 always."""
    trials = choose_type(VECTORS, Targets(k=1), exact_values=0).trials
    narrow = [t for t in trials if t.parameters == {"nprobe": 1}]
    assert narrow
    assert all(t.recall < 0.95 for t in narrow)
    inside = measure_recall(narrow[0].factory, {"nprobe": 1}, VECTORS[:500], 1)
    assert inside > narrow[0].recall + 0.04


def test_queries_are_held_out_of_what_is_measured() -> None:
    held = hold_out(VECTORS, 10, 0)
    assert len(held.gallery) + len(held.queries) == len(VECTORS)
    assert (held.queries @ held.gallery.T).max() < 1 - 1e-6


def test_the_same_vectors_give_the_same_choice_and_trials() -> None:
    first, second = (choose_type(VECTORS, Targets(0.95), seed=3, exact_values=0) for _ in range(2))
    assert _name(first) == _name(second)
    assert [_drop_times(t) for t in first.trials] == [_drop_times(t) for t in second.trials]


def _drop_times(trial: Trial) -> Trial:
    return replace(trial, latency_ms=0, queries_per_s=0)


def test_progress_names_each_trial_in_its_order() -> None:
    seen: list[Trial] = []
    choice = choose_type(VECTORS, Targets(0.9), exact_values=0, on_progress=seen.append)
    assert tuple(seen) == choice.trials


def test_a_memory_limit_is_kept_also_where_an_exact_search_is_quick() -> None:
    limit = 40 * COUNT
    choice = choose_type(VECTORS, Targets(0.9, max_memory_bytes=limit))
    assert choice.memory_bytes <= limit
    assert "SQ8" in choice.factory


def test_a_memory_limit_that_cannot_be_kept_names_the_smallest_index_and_that_is_accepted() -> None:
    with pytest.raises(InputError) as caught:
        choose_type(VECTORS, Targets(0.9, max_memory_bytes=51_200))
    message = str(caught.value)
    assert message == (
        "at recall 0.9 the smallest index is 192 KB (IDMap,SQ8); 51 KB is too little: allow 192 KB or lower --recall"
    )
    assert choose_type(VECTORS, Targets(0.9, max_memory_bytes=192_000)).memory_bytes <= 192_000


def test_a_latency_limit_that_cannot_be_kept_names_the_fastest_index() -> None:
    expected = (
        r"^at recall 0\.9 the fastest index takes \d\.\d+ ms for a query \(.+\); "
        r"1e-06 ms is too little: allow a little more than \d\.\d+ ms, or lower --recall$"
    )
    with pytest.raises(InputError, match=expected):
        choose_type(VECTORS, Targets(0.9, max_latency_ms=1e-6))
    with pytest.raises(InputError, match=r"at recall 0\.9 within 300 KB the fastest index takes .* \(.*SQ8\)"):
        choose_type(VECTORS, Targets(0.9, max_memory_bytes=300_000, max_latency_ms=1e-6))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recall": 0.0}, "a recall of 0 cannot be reached: give more than 0 and at most 1, as 0.99"),
        ({"recall": 99.0}, "a recall of 99 cannot be reached"),
        ({"recall": float("nan")}, "a recall of nan cannot be reached"),
        ({"k": 0}, "k is 0: give 1 or more nearest"),
        ({"max_memory_bytes": 0}, "the limit of the memory is 0: give more than 0, or leave it out"),
        ({"max_latency_ms": -1.0}, "the limit of the latency is -1"),
    ],
)
def test_targets_that_make_no_sense_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Targets(**values)  # type: ignore[arg-type]
