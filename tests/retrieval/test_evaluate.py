"""From class names to what is looked for in what, and the messages where nothing can be."""

import numpy as np
import pytest

from indistill.errors import DataError
from indistill.retrieval.evaluation.evaluate import (
    WITHOUT_CLASSES,
    LabelledVectors,
    Protocol,
    evaluate_retrieval,
    list_empty,
    make_task,
    measure_map_at_r,
)
from indistill.retrieval.evaluation.metrics import JUNK, UNLABELLED, Task, evaluate_vectors, measure_queries


def make_labelled(*labels: str | None, names: tuple[str, ...] = ()) -> LabelledVectors:
    return LabelledVectors(np.eye(len(labels), 12, dtype=np.float32), labels, names)


def test_classes_are_numbered_by_name_and_what_the_gallery_has_not_is_unlabelled() -> None:
    gallery, queries = make_labelled("b", None, "a", "b"), make_labelled("b", "z", None, "a")
    task = make_task(gallery, queries)
    assert task.gallery_labels.tolist() == [1, UNLABELLED, 0, 1]
    assert task.query_labels.tolist() == [1, UNLABELLED, UNLABELLED, 0]
    assert task.gallery_labels.dtype == task.query_labels.dtype == np.int64
    assert (task.gallery is gallery.vectors, task.queries is queries.vectors, task.own) == (True, True, None)
    assert list_empty(task).tolist() == [1, 2]


def test_each_image_is_left_out_of_its_own_ranking() -> None:
    gallery = make_labelled("a", "b", "a", "c")
    task = make_task(gallery, gallery, Protocol(leave_one_out=True))
    assert task.own is not None
    assert task.own.tolist() == [0, 1, 2, 3]
    assert list_empty(task).tolist() == [1, 3]


def test_junk_is_neither_relevant_nor_an_empty_query() -> None:
    gallery = make_labelled("a", "junk", "b", "junk")
    task = make_task(gallery, make_labelled("a", "junk", "c"), Protocol(junk="junk"))
    assert (task.gallery_labels.tolist(), task.query_labels.tolist()) == ([0, JUNK, 1, JUNK], [0, JUNK, UNLABELLED])
    assert list_empty(task).tolist() == [2]
    with pytest.raises(DataError, match=r"^no query has a class of the gallery"):
        make_task(gallery, make_labelled("junk", "c"), Protocol(junk="junk"))


def test_some_of_many_classes_are_named_where_the_junk_is_none() -> None:
    def refuse(count: int, words: str) -> None:
        gallery = make_labelled(*(f"c{number:02}" for number in range(count)))
        with pytest.raises(DataError, match=words):
            make_task(gallery, gallery, Protocol(junk="z"))

    refuse(10, r"^--junk 'z': the gallery has no such class; it has c00, c01, .*c08, c09$")
    refuse(12, r"; it has c00, c01, c02, c03, c04, c05, c06, c07, c08, c09 and 2 more$")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_named(value: float) -> None:
    good, bad = make_labelled("a", "b"), make_labelled("a", "b")
    bad.vectors[1, 3] = value
    with pytest.raises(DataError, match=r"^the model gives vectors that are not finite for the gallery$"):
        make_task(bad, good)
    with pytest.raises(DataError, match=r"^the model gives vectors that are not finite for the queries$"):
        make_task(good, bad)


def test_what_has_no_relevant_image_at_all_is_told_apart() -> None:
    nothing, alone = make_labelled(None, None), make_labelled("a", "b")
    with pytest.raises(DataError, match=f"^the gallery has no classes: .* or labels; {WITHOUT_CLASSES}$"):
        make_task(nothing, nothing)
    with pytest.raises(
        DataError, match=r"^every image is alone in its class: two images of a class at least are needed$"
    ):
        make_task(alone, alone, Protocol(leave_one_out=True))
    with pytest.raises(
        DataError, match=r"^no query has a class of the gallery: both need a sub-folder for each class, of"
    ):
        make_task(alone, make_labelled("c"))


def test_an_empty_query_is_an_error_where_it_must_not_be_with_or_without_its_name() -> None:
    gallery = make_labelled("a", "b")
    words = "have no relevant image in the gallery, the first is"
    with pytest.raises(
        DataError, match=rf"^2 queries {words} 2\.png of class 'x': mend the data, or count them by --empty"
    ):
        make_task(gallery, make_labelled("a", "x", "y", names=("1.png", "2.png", "3.png")), Protocol(empty="error"))
    with pytest.raises(DataError, match=f"^1 queries {words} class 'x'"):
        make_task(gallery, make_labelled("a", "x"), Protocol(empty="error"))
    assert len(list_empty(make_task(gallery, make_labelled("a", "b"), Protocol(empty="error")))) == 0


def test_a_task_in_which_nothing_is_relevant_cannot_be_measured() -> None:
    vectors = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"^no query has a relevant item in the gallery$"):
        measure_queries(Task(vectors, np.array([0, 1]), vectors, np.array([2, -1])), "cosine")


def test_both_metrics_are_measured_and_tell_of_their_progress() -> None:
    random = np.random.default_rng(0)
    gallery, queries = (
        LabelledVectors(random.normal(size=(count, 3)).astype(np.float32), [f"c{i % 4}" for i in range(count)])
        for count in (30, 70)
    )
    progress: list[int] = []
    found = evaluate_retrieval(gallery, queries, (1, 7), progress.append)
    assert progress == [64, 6] * 2  # a block of queries, and the rest
    labels = (np.arange(30) % 4, np.arange(70) % 4)
    for metric in ("cosine", "euclidean"):
        assert found[metric] == evaluate_vectors(gallery.vectors, labels[0], queries.vectors, labels[1], metric, (1, 7))
    assert found["cosine"] != found["euclidean"]
    assert measure_map_at_r(gallery.vectors, labels[0], queries.vectors, labels[1]) == found["cosine"].metrics["map@r"]
