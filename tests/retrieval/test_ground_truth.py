"""The revisited protocol against a slow loop written from the paper's text, and the loop against cases by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from indistill.errors import DataError
from indistill.retrieval.evaluation.ground_truth import (
    Judgement,
    compute_precision,
    compute_trapezoid,
    list_judged,
    locate_judgements,
    measure_judged,
    read_ground_truth,
)


def integrate_slowly(ranking: list[int], positive: set[int], ignored: set[int]) -> float:
    """The area below the curve of precision over recall, an image at a time; it begins at recall 0, precision 1.

    Ignored images are as if they were not in the gallery. The area of each step is a trapezoid.
    """
    area, hits, seen = 0.0, 0, 0
    recall, precision = 0.0, 1.0
    for image in ranking:
        if image in ignored:
            continue
        seen += 1
        hits += image in positive
        area += (hits / len(positive) - recall) * (precision + hits / seen) / 2
        recall, precision = hits / len(positive), hits / seen
    return area


def count_slowly(ranking: list[int], positive: set[int], ignored: set[int], k: int) -> float:
    """Precision among the first k, or among fewer where all positives come before."""
    kept = [image for image in ranking if image not in ignored]
    last = max((i for i, image in enumerate(kept, start=1) if image in positive), default=0)
    first = kept[: min(last, k)]
    return sum(image in positive for image in first) / len(first) if first else 0.0


def test_the_loop_by_hand() -> None:
    # Positives at the ranks 1 and 3: steps of 1/2 from precision 1 to 1, and from 1/2 to 2/3.
    assert integrate_slowly([0, 1, 2, 3], {0, 2}, set()) == pytest.approx(1 / 2 * 1 + 1 / 2 * (1 / 2 + 2 / 3) / 2)
    # With image 1 ignored they stand at the ranks 1 and 2, which is perfect.
    assert integrate_slowly([0, 1, 2, 3], {0, 2}, {1}) == pytest.approx(1)
    # One positive at rank 2: from precision 0 to 1/2.
    assert integrate_slowly([1, 0], {0}, set()) == pytest.approx(1 / 4)
    assert count_slowly([0, 1, 2, 3], {0, 2}, set(), 10) == pytest.approx(2 / 3)
    assert count_slowly([0, 1, 2, 3], {0, 2}, set(), 2) == pytest.approx(1 / 2)
    assert count_slowly([0, 1, 2, 3], {0, 2}, {1}, 5) == 1


def test_trapezoid_and_precision_by_hand() -> None:
    assert compute_trapezoid(np.array([1, 3]), 2) == pytest.approx(1 / 2 + 7 / 24)
    assert compute_trapezoid(np.array([2]), 1) == pytest.approx(1 / 4)
    assert compute_trapezoid(np.array([1]), 4) == pytest.approx(1 / 4)  # three were not found
    assert compute_trapezoid(np.array([], dtype=int), 4) == 0
    assert compute_precision(np.array([1, 3]), 10) == pytest.approx(2 / 3)
    assert compute_precision(np.array([2, 9]), 1) == 0
    assert compute_precision(np.array([], dtype=int), 1) == 0


@pytest.mark.parametrize("seed", range(20))
def test_all_setups_are_those_of_the_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = int(random.integers(5, 60))
    ranking = random.permutation(size)
    grades = random.choice(4, size, p=(0.15, 0.15, 0.2, 0.5))
    easy, hard, junk = (np.flatnonzero(grades == grade) for grade in range(3))
    values = measure_judged(ranking, Judgement(easy, hard, junk), (1, 5, 10))
    found = dict(zip(list_judged((1, 5, 10)), values, strict=True))
    sets = [set(part.tolist()) for part in (easy, hard, junk)]
    setups = {
        "easy": (sets[0], sets[1] | sets[2]),
        "medium": (sets[0] | sets[1], sets[2]),
        "hard": (sets[1], sets[0] | sets[2]),
    }
    for setup, (positive, ignored) in setups.items():
        if not positive:
            assert np.isnan(found[f"map_{setup}"])
            continue
        assert found[f"map_{setup}"] == pytest.approx(integrate_slowly(ranking.tolist(), positive, ignored))
        for k in (1, 5, 10):
            expected = count_slowly(ranking.tolist(), positive, ignored, k)
            assert found[f"mp@{k}_{setup}"] == pytest.approx(expected)


def test_what_an_index_does_not_return_counts_as_not_found() -> None:
    judgement = Judgement(np.array([0, 1]), np.array([2]), np.array([3]))
    found = dict(zip(list_judged((1,)), measure_judged(np.array([3, 0]), judgement, (1,)), strict=True))
    assert found["map_easy"] == pytest.approx(1 / 2)
    assert found["map_medium"] == pytest.approx(1 / 3)
    assert found["map_hard"] == 0
    assert found["mp@1_easy"] == 1


def test_a_setup_without_a_positive_image_has_no_figures_and_the_others_keep_theirs() -> None:
    nothing = np.array([], dtype=int)
    values = measure_judged(np.array([0, 1, 2]), Judgement(nothing, np.array([1]), nothing), (1, 5))
    found = dict(zip(list_judged((1, 5)), values, strict=True))
    assert [name for name, value in found.items() if np.isnan(value)] == ["map_easy", "mp@1_easy", "mp@5_easy"]
    assert (found["map_medium"], found["map_hard"]) == (1 / 4, 1 / 4)
    assert (found["mp@1_hard"], found["mp@5_hard"]) == (0, 1 / 2)
    values = measure_judged(np.array([0, 1, 2]), Judgement(np.array([1]), nothing, nothing), (1, 5))
    found = dict(zip(list_judged((1, 5)), values, strict=True))
    assert [name for name, value in found.items() if np.isnan(value)] == ["map_hard", "mp@1_hard", "mp@5_hard"]


def test_names_are_located_and_queries_without_an_entry_have_none() -> None:
    truth = {"q.png": {"easy": ["c.png", "a.png"], "junk": ["b.png"]}}
    first, second = locate_judgements(truth, ["q.png", "r.png"], ["a.png", "b.png", "c.png"])
    assert first is not None
    assert (first.easy.tolist(), first.hard.tolist(), first.junk.tolist()) == ([0, 2], [], [1])
    assert second is None
    assert {part.dtype for part in (first.easy, first.hard, first.junk)} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({"x.png": {}}, r"1 queries .* the first is 'x\.png'.*"),
        ({"q.png": {"easy": ["d.png"]}}, r"1 images .* for 'q\.png' are not in the gallery, the first is 'd\.png'"),
        ({"q.png": {"easy": ["a.png"], "junk": ["a.png"]}}, r"names 'a\.png' twice"),
    ],
)
def test_names_that_do_not_fit_are_an_error(truth, words: str) -> None:
    with pytest.raises(DataError, match=words):
        locate_judgements(truth, ["q.png"], ["a.png", "b.png"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        (
            "[]",
            r'has no queries: it must be {"query image": {"easy": \[gallery images\], "hard": .*, "junk": .*}, ',
        ),
        ("{}", "has no queries"),
        ('{"q": 3}', "'q' has no grades"),
        ('{"q": {"esy": []}}', "a grade 'esy'.*Did you mean 'easy'"),
        ('{"q": {"easy": [1]}}', "'easy' of 'q' is no list of names"),
    ],
)
def test_a_file_of_another_form_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_ground_truth(tmp_path / "truth.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_ground_truth(tmp_path / "none.json")


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    truth = {"q": {"easy": ["a"], "hard": [], "junk": ["ü"]}}
    (tmp_path / "truth.json").write_text(json.dumps(truth, ensure_ascii=False), encoding="utf-8")
    assert read_ground_truth(tmp_path / "truth.json") == truth
