"""What the types of FAISS are relied on for, by running each."""

import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from indistill.errors import InputError
from indistill.retrieval.index_types.types import (
    add_to_faiss,
    can_filter,
    can_remove,
    check_factory,
    find_ivf,
    list_ids,
    make_faiss,
    read_faiss,
    remove_from_faiss,
    search_faiss,
    set_parameters,
    warn_of_factory,
)

REMOVABLE = ["Flat", "SQ8", "SQfp16", "IVF16,Flat", "IVF16,SQ8", "RR16,IVF16,SQ8"]
OTHERS = ["HNSW16", "IVF16,SQ8,RFlat"]
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
    if find_ivf(index) is not None:
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
    assert (found[:, 0] == IDS[left]).mean() > 0.97
    assert can_remove(check_factory(factory, 16))
    assert warn_of_factory(factory) is None


def test_opq_is_trained_searched_filtered_and_removed_from() -> None:
    """Once, and on few vectors, as its training is slow."""
    index = make_faiss("OPQ8,IVF16,SQ8", VECTORS[:400], IDS[:400])
    set_parameters(index, {"nprobe": 16})
    assert (search_faiss(index, VECTORS[:100], 1)[1][:, 0] == IDS[:100]).all()
    assert np.isin(search_faiss(index, VECTORS[:50], 5, IDS[:9])[1], IDS[:9]).all()
    assert remove_from_faiss(index, IDS[:100]) == 100
    assert (search_faiss(index, VECTORS[100:400], 1)[1][:, 0] == IDS[100:400]).all()


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


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("Flat", "IDMap,Flat"),
        ("IDMap2,Flat", "IDMap,Flat"),
        ("IDMap,SQ8", "IDMap,SQ8"),
        ("IVF16,SQ8", "IVF16,SQ8"),
        ("RR16,IVF16,SQ8", "RR16,IVF16,SQ8"),
        ("HNSW16", "IDMap,HNSW16"),
        ("IVF16,SQ8,RFlat", "IDMap,IVF16,SQ8,RFlat"),
    ],
)
def test_the_map_of_ids_is_put_where_it_belongs(given: str, made: str) -> None:
    assert check_factory(given, 16) == made
    assert check_factory(made, 16) == made


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Foo", "'Foo' is no index type of FAISS for vectors of 16 values: give one such as Flat"),
        ("", "'' is no index type"),
        ("OPQ5,IVF16,PQ5", "no index type of FAISS for vectors of 16 values"),
        ("IVF99999999999,Flat", "no number in an index type may be above"),
        ("PQ8", r"cannot be added to, removed from or searched with a filter \(IndexPQ\)"),
        ("NSG16", "cannot be added to"),
        ("IVF0,Flat", "give IVF1024 or IVF65536_HNSW32"),
        ("IVF4(IVF2,Flat),SQ8", "give IVF1024 or IVF65536_HNSW32"),
        ("HNSW0", "give 2 to 256 neighbours"),
        ("Flat\x1b[31m", r"\\x1b"),
    ],
)
def test_a_type_that_cannot_be_used_is_refused_in_one_line(factory: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_factory(factory, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "RR16,IVF16,SQ8", "IVF16_HNSW8,SQfp16"])
def test_a_search_among_all_is_the_search_without_a_filter(factory: str) -> None:
    """The twin of the above: the parameters of the index hold with a filter too."""
    index = make_faiss(factory, VECTORS, IDS)
    found = []
    for probes in (1, 16):
        set_parameters(index, {"nprobe": probes})
        found.append(search_faiss(index, VECTORS[:200], 5)[1])
        assert np.array_equal(search_faiss(index, VECTORS[:200], 5, IDS)[1], found[-1])
    assert not np.array_equal(*found)


@pytest.mark.parametrize("factory", ["SQ8,RFlat", "IVF16,SQ8,Refine(SQ8)"])
def test_refine_cannot_be_searched_among_some(factory: str) -> None:
    assert not can_filter(factory)
    with pytest.raises(InputError, match="cannot be searched with a filter"):
        search_faiss(make_faiss(factory, VECTORS, IDS), VECTORS[:1], 5, IDS[:100])


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF16,Flat", "IVF16,SQ8"])
def test_equal_vectors_have_equal_scores_and_each_its_own_id(factory: str) -> None:
    index = make_faiss(
        factory, np.concatenate([VECTORS, np.repeat(VECTORS[:1], 4, axis=0)]), np.arange(len(VECTORS) + 4)
    )
    scores, ids = search_faiss(index, VECTORS[:1], 5)
    assert sorted(ids[0]) == [0, *range(len(VECTORS), len(VECTORS) + 4)]
    assert len(set(scores[0].tolist())) == 1


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        ("Flat", {"nprobe": 4}, "has no nprobe"),
        ("IVF16,Flat", {"efSearch": 4}, "has no efSearch"),
        ("IVF16,Flat", {"nprob": 4}, "nprob=4 is no search parameter: give nprobe, efSearch or k_factor"),
        ("IVF16,Flat", {"nprobe": 0}, "nprobe=0 is no search parameter"),
    ],
)
def test_a_parameter_that_the_type_has_not_is_refused(factory: str, parameters: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        set_parameters(make_faiss(factory, VECTORS, IDS), parameters)


def test_refine_takes_k_factor_and_nprobe_through_the_map() -> None:
    index = make_faiss("IVF16,SQ8,RFlat", VECTORS, IDS)
    set_parameters(index, {"k_factor": 6, "nprobe": 4})
    assert faiss.downcast_index(index.index).k_factor == 6
    assert find_ivf(index).nprobe == 4


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQ8", "HNSW16"])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_is_missing_or_cut_short_is_not_read(factory: str, mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "index.faiss"
    faiss.write_index(make_faiss(factory, VECTORS, IDS), str(path))
    whole = path.read_bytes()
    for size in (0, 2, 50, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        with pytest.raises(RuntimeError):
            read_faiss(path, mapped=mapped)
    path.unlink()
    with pytest.raises(RuntimeError):
        read_faiss(path, mapped=mapped)


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "IVF16,Flat", "IVF16,SQ8"])
def test_a_mapped_index_stays_on_the_disk(factory: str, tmp_path: Path) -> None:
    """In a process of its own, memory that is not backed by the file grows by less than a tenth of the file."""
    path = tmp_path / "index.faiss"
    wide = np.tile(VECTORS, (6, 24))  # 12,000 x 384
    faiss.write_index(make_faiss(factory, wide, np.arange(len(wide))), str(path))
    script = (
        "import sys; from pathlib import Path; from indistill.retrieval.index_types.types import read_faiss\n"
        "def held():\n"
        "    return int([l for l in open('/proc/self/status') if l.startswith('RssAnon')][0].split()[1]) * 1024\n"
        "before = held(); index = read_faiss(Path(sys.argv[1]), mapped=sys.argv[2] == 'mapped'); print(held() - before)"
    )
    grown = {
        how: int(subprocess.run([sys.executable, "-c", script, path, how], check=True, capture_output=True).stdout)
        for how in ("mapped", "read")
    }
    size = path.stat().st_size
    assert grown["mapped"] < 0.1 * size + 2**20
    assert 0.7 * size < grown["read"] < 1.1 * size + 2**20
