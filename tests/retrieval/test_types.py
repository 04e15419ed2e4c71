"""What the types of FAISS are relied on for, by running each."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from indistill.errors import InputError
from indistill.retrieval.choose import Targets, choose_type
from indistill.retrieval.trials import hold_out
from indistill.retrieval.types import (
    add_to_faiss,
    can_filter,
    can_remove,
    check_factory,
    list_ids,
    make_faiss,
    read_faiss,
    remove_from_faiss,
    search_faiss,
    set_parameters,
    warn_of_factory,
)

REMOVABLE = ["Flat", "SQ8", "SQfp16", "IVF16,Flat", "IVF16,SQ8", "OPQ8,IVF16,PQ8"]
OTHERS = ["HNSW16", "IVF16,PQ8,RFlat"]
EXACT = ["Flat", "IVF16,Flat"]


def draw_vectors(count: int, seed: int, dimension: int = 16) -> np.ndarray:
    """Returns unit vectors of thirty classes that overlap, of which some are large and many small."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(30, dimension))
    share = 1 / np.arange(1, 31)
    rows = centres[random.choice(30, count, p=share / share.sum())] + random.normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


VECTORS = draw_vectors(2000, 0)
IDS = np.arange(2000) * 3 + 7


def open_all_lists(index: faiss.Index) -> None:
    if faiss.try_extract_index_ivf(index) is not None:
        set_parameters(index, {"nprobe": 16})


@pytest.mark.parametrize("factory", REMOVABLE)
def test_vectors_that_stay_keep_their_ids_when_others_are_added_and_removed(factory: str) -> None:
    index = make_faiss(factory, VECTORS[:1500], IDS[:1500])
    add_to_faiss(index, VECTORS[1500:], IDS[1500:])
    gone = IDS[::4]
    assert remove_from_faiss(index, gone) == len(gone)
    open_all_lists(index)
    left = ~np.isin(IDS, gone)
    assert sorted(list_ids(index)) == IDS[left].tolist()
    _, found = search_faiss(index, VECTORS[left], 1)
    least = 0.5 if "PQ8" in factory else 0.97
    assert (found[:, 0] == IDS[left]).mean() > least
    assert can_remove(check_factory(factory, 16))
    assert warn_of_factory(factory) is None


@pytest.mark.parametrize("factory", OTHERS)
def test_types_that_cannot_remove_say_so(factory: str) -> None:
    factory = check_factory(factory, 16)
    index = make_faiss(factory, VECTORS, IDS)
    with pytest.raises(InputError, match="cannot be removed"):
        remove_from_faiss(index, IDS[:3])
    assert not can_remove(factory)
    assert "cannot be removed" in str(warn_of_factory(factory))


@pytest.mark.parametrize("factory", [*REMOVABLE, "HNSW16"])
def test_among_some_ids_as_many_are_found_as_there_are(factory: str) -> None:
    index = make_faiss(factory, VECTORS, IDS)
    for count in (3, 500):
        among = np.random.default_rng(1).choice(IDS, count, replace=False)
        scores, found = search_faiss(index, VECTORS[:20], 10, among)
        wanted = min(10, count)
        assert np.isin(found[:, :wanted], among).all()
        assert (found[:, wanted:] == -1).all()
        assert np.isneginf(scores[:, wanted:]).all()
    assert can_filter(check_factory(factory, 16))


@pytest.mark.parametrize("factory", EXACT)
def test_an_exact_type_finds_what_brute_force_does(factory: str) -> None:
    index = make_faiss(factory, VECTORS, IDS)
    open_all_lists(index)
    queries = draw_vectors(30, 5)
    products = queries @ VECTORS.T
    scores, found = search_faiss(index, queries, 10)
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :10], atol=1e-5)
    assert (found == IDS[np.argsort(-products, axis=1)[:, :10]]).mean() > 0.99


@pytest.mark.parametrize("factory", [*REMOVABLE, *OTHERS])
def test_an_index_is_the_same_from_its_file_mapped_or_not(factory: str, tmp_path: Path) -> None:
    index = make_faiss(factory, VECTORS, IDS)
    if "IVF" in factory:
        set_parameters(index, {"nprobe": 5})
    faiss.write_index(index, str(tmp_path / "index"))
    expected = search_faiss(index, VECTORS[:50], 5)
    for mapped in (False, True):
        scores, found = search_faiss(read_faiss(tmp_path / "index", mapped=mapped), VECTORS[:50], 5)
        np.testing.assert_array_equal(found, expected[1])
        np.testing.assert_allclose(scores, expected[0])


def test_the_same_vectors_give_the_same_bytes() -> None:
    made = [faiss.serialize_index(make_faiss("IVF16,SQ8", VECTORS, IDS)).tobytes() for _ in range(2)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("IDMap2,IVF16,Flat", r"loses track of its ids .*: give 'IVF16,Flat'"),
        ("Nonsense", "is no index type of FAISS"),
        ("NSG16", "cannot be added to"),
        ("IVF4096,Flat", "has 4096 lists, and there are 2000 vectors"),
    ],
)
def test_a_type_that_would_lose_ids_or_vectors_is_refused(factory: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_faiss(factory, VECTORS, IDS)


def test_idmap_over_ivf_does_lose_ids() -> None:
    """The reason for the refusal above: FAISS by itself takes it and answers wrongly."""
    index = faiss.index_factory(16, "IDMap2,IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    index.add_with_ids(VECTORS, IDS)
    set_parameters(index, {"nprobe": 16})
    index.remove_ids(IDS[:500])
    _, found = index.search(VECTORS[500:], 1)
    assert (found[:, 0] == IDS[500:]).mean() < 0.5


def test_the_chosen_type_reaches_the_recall_on_other_queries_with_less_work_than_all() -> None:
    vectors = draw_vectors(12_000, 2, dimension=32)
    choice = choose_type(vectors, Targets(recall=0.95), exact_values=0)
    assert choice.factory.startswith("IVF")
    assert choice.recall >= 0.95
    chosen = next(trial for trial in choice.trials if trial.factory == choice.factory)
    assert chosen.read_bytes < choice.trials[0].read_bytes
    index = make_faiss(choice.factory, vectors, np.arange(len(vectors)))
    set_parameters(index, choice.parameters)
    queries = draw_vectors(400, 77, dimension=32)
    nearest = np.sort(queries @ vectors.T, axis=1)[:, -10:]
    _, found = search_faiss(index, queries, 10)
    exact = np.take_along_axis(queries @ vectors.T, found, 1)
    assert (exact >= nearest[:, :1] - 1e-6).mean() > 0.93


def test_a_small_set_is_searched_exactly_and_the_same_set_gives_the_same_choice() -> None:
    choice = choose_type(VECTORS, Targets())
    assert (choice.factory, choice.parameters, choice.recall) == ("IDMap2,Flat", {}, 1.0)
    again = [choose_type(VECTORS, Targets(recall=0.9), exact_values=0) for _ in range(2)]
    assert (again[0].factory, again[0].parameters) == (again[1].factory, again[1].parameters)


def test_queries_are_held_out_of_what_is_measured() -> None:
    held = hold_out(VECTORS, 10, 0)
    assert len(held.gallery) + len(held.queries) == len(VECTORS)
    assert (held.queries @ held.gallery.T).max() < 1 - 1e-6


def test_a_limit_that_cannot_be_kept_is_refused_with_the_nearest_that_can() -> None:
    with pytest.raises(
        InputError, match=r"the smallest index is \d+ KB \(.*\); 1000 bytes is too little: allow \d+ KB"
    ):
        choose_type(VECTORS, Targets(max_memory_bytes=1000))
    with pytest.raises(InputError, match=r"the fastest index takes .* ms .*; 1e-06 ms is too little"):
        choose_type(VECTORS, Targets(max_latency_ms=1e-6))
    with pytest.raises(InputError, match="more than 0 and at most 1"):
        Targets(recall=0)
