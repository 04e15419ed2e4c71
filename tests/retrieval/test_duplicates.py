"""Near-duplicates against brute force over all pairs."""

from itertools import combinations

import numpy as np
import pytest

from indistill.retrieval import duplicates
from indistill.retrieval.duplicates import Positions, group_vectors
from indistill.retrieval.metrics import Vectors


def make_vectors(seed: int, count: int, dimension: int = 8) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def group_by_brute_force(vectors: Vectors, threshold: float, copies: Positions | None = None) -> list[list[int]]:
    """Joins the sets of each pair, one pair after the other."""
    groups = [{i} for i in range(len(vectors))]
    for i, j in combinations(range(len(vectors)), 2):
        close = float(vectors[i].astype(np.float64) @ vectors[j].astype(np.float64)) >= threshold
        if close or (copies is not None and i == copies[j]):
            left, right = (next(group for group in groups if position in group) for position in (i, j))
            if left is not right:
                left |= right
                groups.remove(right)
    return sorted((sorted(group) for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def listed(groups: list[Positions]) -> list[list[int]]:
    return [group.tolist() for group in groups]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("block", [7, 50, 1000])
def test_groups_are_those_of_brute_force(threshold: float, block: int) -> None:
    vectors = make_vectors(block, 120)
    assert listed(group_vectors(vectors, threshold, block=block)) == group_by_brute_force(vectors, threshold)


def test_few_waiting_pairs_give_the_same_groups_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_vectors(1, 120)
    expected = listed(group_vectors(vectors, 0.8))
    assert max(map(len, expected)) > 3  # chains, which are joined in several steps
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 3)
    assert listed(group_vectors(vectors, 0.8, block=7)) == expected


def test_planted_duplicates_are_found_and_no_others() -> None:
    random = np.random.default_rng(2)
    vectors = make_vectors(2, 3000, 64)
    expected = []
    for i in range(100):
        noise = random.standard_normal(64).astype(np.float32)
        copy = vectors[10 * i] + 0.02 * noise / np.linalg.norm(noise)
        vectors[10 * i + 7] = copy / np.linalg.norm(copy)
        expected.append([10 * i, 10 * i + 7])
    assert listed(group_vectors(vectors, 0.98, block=512)) == expected


def test_equal_content_joins_what_the_vectors_do_not() -> None:
    vectors = make_vectors(3, 60)
    copies = np.arange(60)
    copies[[20, 41, 59]] = 5
    found = listed(group_vectors(vectors, 0.9, copies=copies, block=16))
    assert found == group_by_brute_force(vectors, 0.9, copies)
    assert any({5, 20, 41, 59} <= set(group) for group in found)


def test_equal_vectors_are_a_group_at_the_highest_threshold() -> None:
    vectors = np.repeat(make_vectors(4, 50, 128), 2, axis=0)
    assert listed(group_vectors(vectors, 1.0, block=33)) == [[2 * i, 2 * i + 1] for i in range(50)]


def test_all_images_alike_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 1000)
    vectors = np.repeat(make_vectors(5, 1), 300, axis=0)
    assert listed(group_vectors(vectors, 0.95, block=64)) == [list(range(300))]


@pytest.mark.parametrize("count", [0, 1])
def test_no_pairs_no_groups(count: int) -> None:
    assert group_vectors(make_vectors(6, count), 0.95) == []


def test_progress_counts_every_image_once() -> None:
    done: list[int] = []
    group_vectors(make_vectors(7, 100), 0.95, on_progress=done.append, block=30)
    assert done == [30, 30, 30, 10]
