import itertools

import numpy as np
import pytest
from scipy import stats

from indistill.closeness import (
    MINIMUM_IMAGES,
    NEIGHBOURS,
    compute_linear_cka,
    correlate,
    correlate_ranks,
    find_neighbours,
    measure_closeness,
    measure_mapped_cosine,
    measure_overlaps,
    prepare_vectors,
    sample_pairs,
)
from indistill.errors import DataError

COUNT = 60


def draw(width: int, seed: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def rotate(vectors: np.ndarray, width: int) -> np.ndarray:
    """Rotates vectors into a space of at least their width."""
    basis = np.linalg.qr(np.random.default_rng(7).normal(size=(width, width)))[0][: vectors.shape[1]]
    return (vectors @ basis).astype(np.float32)


@pytest.mark.parametrize("width", [8, 13])
def test_an_embedding_is_as_close_as_can_be_to_itself_and_to_its_rotation(width: int) -> None:
    vectors = draw(8, 0)
    reference = prepare_vectors(vectors, "teacher")
    for other in (vectors, rotate(vectors, width)):
        closeness = measure_closeness(reference, prepare_vectors(3 * other, "student"))
        assert closeness.neighbour_overlap == 1
        assert closeness.cosine_difference == pytest.approx(0, abs=1e-6)
        assert closeness.rank_correlation == pytest.approx(1, abs=1e-6)
        for value in (closeness.linear_cka, closeness.cosine_correlation):
            assert value == pytest.approx(1, abs=1e-6)
        assert closeness.rotated_cosine == pytest.approx(1, abs=1e-5)
        assert closeness.mapped_cosine == pytest.approx(1, abs=1e-5)


def test_random_embeddings_are_near_chance() -> None:
    count = 2000
    first, second = (prepare_vectors(draw(16, seed, count), "x") for seed in (1, 2))
    closeness = measure_closeness(first, second)
    assert closeness.neighbour_overlap == pytest.approx(NEIGHBOURS / (count - 1), abs=0.003)
    for value in (closeness.rank_correlation, closeness.cosine_correlation, closeness.rotated_cosine):
        assert abs(value) < 0.15
    assert closeness.linear_cka < 0.02


def test_a_linear_map_undoes_what_a_rotation_cannot() -> None:
    vectors = prepare_vectors(draw(8, 3), "teacher").vectors
    stretched = vectors * np.geomspace(1, 50, 8, dtype=np.float32)
    assert measure_mapped_cosine(vectors, stretched, rotation=False) == pytest.approx(1, abs=1e-5)
    assert measure_mapped_cosine(vectors, stretched, rotation=True) < 0.95


def test_the_map_is_measured_on_images_that_it_was_not_fitted_on() -> None:
    first, second = (prepare_vectors(draw(64, seed, 40), "x").vectors for seed in (4, 5))
    # Half of the images, 20, fix a map of 64 dimensions at will.
    even = np.linalg.lstsq(second[::2], first[::2], rcond=None)[0]
    assert np.allclose(second[::2] @ even, first[::2], atol=1e-3)
    assert measure_mapped_cosine(first, second, rotation=False) < 0.3


def test_the_rotation_is_the_best_of_all() -> None:
    first, second = (prepare_vectors(draw(2, seed), "x").vectors for seed in (6, 8))
    angles = np.linspace(0, 2 * np.pi, 2001)
    best = -1.0
    for mirror, angle in itertools.product((1, -1), angles):
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle) * mirror, np.cos(angle) * mirror]])
        best = max(best, float((second[::2] @ matrix * first[::2]).sum(axis=1).mean()))
    source, target = np.repeat(second[::2], 2, axis=0), np.repeat(first[::2], 2, axis=0)  # measured where it is fitted
    assert measure_mapped_cosine(target, source, rotation=True) == pytest.approx(best, abs=1e-5)


def test_neighbours_are_those_of_a_full_sort_with_equal_ones_by_position() -> None:
    vectors = np.random.default_rng(9).integers(-1, 2, (COUNT, 3)).astype(np.float32)  # exact products, many ties
    found = find_neighbours(vectors, 5)
    for query in range(COUNT):
        others = [(-float(vectors[query] @ vectors[p]), p) for p in range(COUNT) if p != query]
        assert found[query].tolist() == [p for _, p in sorted(others)[:5]]


def test_overlap_by_hand() -> None:
    first, second = np.array([[1, 2, 3], [0, 2, 3]]), np.array([[3, 1, 9], [4, 5, 6]])
    assert measure_overlaps(first, second).tolist() == pytest.approx([2 / 3, 0])


def test_figures_of_pairs_by_loops() -> None:
    first, second = (prepare_vectors(draw(width, width), "x") for width in (5, 9))
    closeness = measure_closeness(first, second)
    cosines: list[list[float]] = [[], []]
    for i, j in itertools.combinations(range(COUNT), 2):
        for part, values in zip((first, second), cosines, strict=True):
            values.append(float(np.dot(part.vectors[i].astype(float), part.vectors[j].astype(float))))
    distances = [np.sqrt(np.maximum(2 - 2 * np.array(values), 0)) for values in cosines]
    assert closeness.rank_correlation == pytest.approx(stats.spearmanr(*distances).statistic)
    assert closeness.cosine_correlation == pytest.approx(stats.pearsonr(*cosines).statistic)
    assert closeness.cosine_difference == pytest.approx(np.mean([abs(a - b) for a, b in zip(*cosines, strict=True)]))


def test_cka_by_its_definition_with_gram_matrices() -> None:
    x, y = draw(5, 1).astype(np.float64), draw(9, 2).astype(np.float64)
    centring = np.eye(COUNT) - 1 / COUNT
    k, m = (centring @ values @ values.T @ centring for values in (x, y))
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert compute_linear_cka(x, y) == pytest.approx(expected)


def test_pairs_are_of_different_images_and_all_of_them_where_they_are_few() -> None:
    first, second = sample_pairs(6, 15, 0)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == set(itertools.combinations(range(6), 2))
    first, second = sample_pairs(100, 500, 0)
    assert len(first) == 500
    assert not (first == second).any()
    assert second.min() >= 0
    assert second.max() < 100
    assert (sample_pairs(100, 500, 0)[0] == first).all()


def test_a_constant_embedding_is_close_to_nothing() -> None:
    constant = prepare_vectors(np.ones((COUNT, 4), dtype=np.float32), "student")
    closeness = measure_closeness(prepare_vectors(draw(4, 0), "teacher"), constant)
    assert closeness.linear_cka == pytest.approx(0, abs=1e-9)
    assert correlate(np.ones(3), np.arange(3.0)) == 0
    assert correlate_ranks(np.ones(3), np.arange(3.0)) == 0
    assert all(np.isfinite(value) for value in vars(closeness).values())


def test_too_few_images_and_vectors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match=f"{MINIMUM_IMAGES} readable images at least are needed .* not 19"):
        prepare_vectors(draw(3, 0, MINIMUM_IMAGES - 1), "student")
    broken = draw(3, 0)
    broken[5, 1] = np.nan
    with pytest.raises(DataError, match="the student gives vectors that are not finite"):
        prepare_vectors(broken, "student")
