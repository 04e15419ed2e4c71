import numpy as np
import pytest

from indistill.errors import DataError
from indistill.retrieval.evaluation.evaluate import measure_map_among


def measure_slowly(vectors: np.ndarray, labels: np.ndarray) -> float:
    """By a full sort for each image, without it; equal cosines by position."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    values = []
    for query in range(len(unit)):
        others = [i for i in range(len(unit)) if i != query]
        ranking = sorted(others, key=lambda i: (-(unit[i] @ unit[query]), i))
        hits = [labels[i] == labels[query] for i in ranking]
        if any(hits):
            values.append(np.mean([sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit]))
    return float(np.mean(values))


def test_map_among_images_is_that_of_a_full_sort_without_the_image_itself() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5)).astype(np.float32)
    labels = rng.integers(0, 7, 60)
    labels[0] = 9  # alone
    labels[1:3] = 10  # a pair
    assert measure_map_among(vectors, labels) == pytest.approx(measure_slowly(vectors, labels), abs=1e-9)


def test_equal_cosines_among_images_are_ranked_by_position() -> None:
    vectors = np.eye(3, dtype=np.float32)[np.arange(24) % 3]
    labels = np.random.default_rng(1).integers(0, 4, 24)
    assert measure_map_among(vectors, labels) == pytest.approx(measure_slowly(vectors, labels), abs=1e-9)


def test_classes_that_lie_apart_are_perfect() -> None:
    vectors = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    assert measure_map_among(vectors, np.repeat([2, 0, 1], 4)) == 1


def test_classes_of_one_image_cannot_be_measured() -> None:
    with pytest.raises(
        DataError, match=r"^every image is alone in its class: two images of a class at least are needed for map$"
    ):
        measure_map_among(np.eye(3, dtype=np.float32), np.arange(3))
