"""Near-duplicates against brute force, one image after the other."""

import numpy as np
import pytest

from indistill.retrieval.duplicates import Positions, group_vectors
from indistill.retrieval.evaluation.metrics import Vectors


def make_vectors(seed: int, count: int, dimension: int = 8) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def group_by_brute_force(vectors: Vectors, threshold: float, copies: Positions | None = None) -> list[list[int]]:
    """Gives each row in turn to the first group whose first row it is close to."""
    groups: list[list[int]] = []
    for i, vector in enumerate(vectors.astype(np.float64)):
        if copies is not None and copies[i] != i:
            own = next(group for group in groups if copies[i] in group)
        else:
            close = (group for group in groups if float(vectors[group[0]].astype(np.float64) @ vector) >= threshold)
            own = next(close, [])
        if not own:
            groups.append(own)
        own.append(i)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0]))


def listed(groups: list[Positions]) -> list[list[int]]:
    return [group.tolist() for group in groups]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("block", [7, 50, 1000])
def test_groups_are_those_of_brute_force(threshold: float, block: int) -> None:
    vectors = make_vectors(block, 120)
    assert listed(group_vectors(vectors, threshold, block=block)) == group_by_brute_force(vectors, threshold)


@pytest.mark.parametrize("block", [2, 1000])
def test_a_chain_is_no_group(block: int) -> None:
    degrees = np.radians(np.arange(0, 180, 10))  # each has cosine 0.985 to the next, the first and the last -0.985
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)
    groups = listed(group_vectors(vectors, 0.98, block=block))
    assert groups == [[i, i + 1] for i in range(0, 18, 2)]


def test_one_of_each_group_and_what_has_none_are_no_near_duplicates() -> None:
    vectors = make_vectors(8, 400)
    groups = group_vectors(vectors, 0.8, block=64)
    for group in groups:
        assert (vectors[group] @ vectors[group[0]]).min() >= 0.8 - 1e-6
    kept = np.delete(np.arange(400), np.concatenate([group[1:] for group in groups]))
    assert len(kept) < 400
    close = vectors[kept] @ vectors[kept].T
    assert np.triu(close, 1).max() < 0.8


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


def test_all_images_alike_are_one_group() -> None:
    vectors = np.repeat(make_vectors(5, 1), 300, axis=0)
    assert listed(group_vectors(vectors, 0.95, block=64)) == [list(range(300))]


@pytest.mark.parametrize("count", [0, 1])
def test_no_pairs_no_groups(count: int) -> None:
    assert group_vectors(make_vectors(6, count), 0.95) == []


def test_progress_counts_every_image_once() -> None:
    done: list[int] = []
    group_vectors(make_vectors(7, 100), 0.95, on_progress=done.append, block=30)
    assert done == [30, 30, 30, 10]
