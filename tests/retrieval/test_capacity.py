"""The arithmetic of scale against indexes that are built."""

import time
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from indistill.data.sets import open_folder
from indistill.errors import DataError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.capacity import (
    CODE_BYTES,
    MEASURED_ON,
    PROBINGS,
    Need,
    Plan,
    Rates,
    choose_code,
    count_lists,
    find_probing,
    measure_products,
    measure_rates,
    plan_gallery,
)
from indistill.retrieval.index_types.choose import EXACT_VALUES
from indistill.retrieval.index_types.trials import one_thread
from indistill.retrieval.index_types.types import make_faiss
from indistill.retrieval.store.catalogue import NewItem, edit_catalogue
from tests.retrieval.conftest import write_gallery

RATES = Rates(embed_s=0.01, file_bytes=5e4, item_bytes=250, products_per_s=1e10, scan_bytes_per_s=1e10, images=64)


def plan(count: int, dimension: int = 128, recall: float = 0.95, rates: Rates = RATES) -> Plan:
    return plan_gallery(count, dimension, recall, rates, cores=8, memory_bytes=64e9)


def find(made: Plan, name: str) -> Need:
    return next(need for need in made.needs if need.name == name)


@pytest.mark.parametrize(("count", "recall"), [(30_000, 1), (100_000, 0.95), (60_000, 0.99)])
def test_the_index_on_disk_is_as_large_as_planned(tmp_path: Path, count: int, recall: float) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = plan(count, recall=recall)
    faiss.write_index(make_faiss(made.factory, vectors, np.arange(count)), str(tmp_path / "index.faiss"))
    assert (tmp_path / "index.faiss").stat().st_size == pytest.approx(find(made, "index on disk").least, rel=0.01)


def test_small_galleries_and_recall_1_are_searched_exactly() -> None:
    assert plan(EXACT_VALUES // 128).factory == "IDMap,Flat"
    assert plan(EXACT_VALUES // 128 + 1).factory.startswith("IVF")
    assert plan(10**9, recall=1).factory == "IDMap,Flat"


@pytest.mark.parametrize("recall", [0.9, 0.995, 1])
def test_the_scan_of_an_exact_search_is_measured_on_whole_vectors(recall: float) -> None:
    assert choose_code(EXACT_VALUES // 128, 128, recall) == "Flat"
    assert choose_code(EXACT_VALUES // 128 + 1, 128, 0.99) == find_probing(0.99).code


def test_the_lists_are_those_of_the_least_that_a_choice_tries() -> None:
    assert [count_lists(n) for n in (10**5, 10**6, 10**8)] == [512, 2048, 16384]
    assert all(probing.lists == count_lists(MEASURED_ON) for probing in PROBINGS)


def test_bytes_and_embedding_grow_in_proportion_and_the_cores_share_the_work() -> None:
    small, large = plan(10**6), plan(10**8)
    for name in ("image files read", "embedding", "embeddings on disk", "catalogue on disk"):
        assert find(large, name).least == pytest.approx(100 * find(small, name).least)
    assert find(large, "embedding").least == pytest.approx(1e6)  # 10^8 x 10 ms
    assert find(large, "time of embedding").least == pytest.approx(1e6 / 8)


def test_a_query_reads_the_centroids_and_the_lists_that_it_probes() -> None:
    at_million = find(plan(MEASURED_ON), "one query, one core")
    probing = find_probing(0.95)
    read = 4 * 128 * probing.lists + MEASURED_ON / probing.lists * probing.probed * CODE_BYTES[probing.code] * 128
    assert at_million.least == at_million.most == pytest.approx(read / RATES.scan_bytes_per_s)
    further = find(plan(10**8), "one query, one core")
    assert further.least < further.most  # as many lists as then, or as large a share of them


def test_more_recall_costs_more() -> None:
    queries = [find(plan(10**7, recall=recall), "one query, one core").most for recall in (0.9, 0.95, 0.99, 1)]
    assert queries == sorted(set(queries))


def test_machines_are_whole() -> None:
    assert find(plan(10**6), "machines that hold it").least == 1
    index = find(plan(10**9), "index in memory").least
    assert find(plan(10**9), "machines that hold it").least == -(-index // 64e9) > 1


def test_a_recall_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"no setting for a recall of 0\.995 was measured: give at most 0\.99, or 1"):
        choose_code(10**6, 128, 0.995)


def test_rates_are_measured_on_the_images(small_model: EmbeddingSession, pictures: list[bytes], tmp_path: Path) -> None:
    gallery = open_folder(write_gallery(tmp_path / "gallery", pictures), "gallery")
    done: list[int] = []
    rates = measure_rates(small_model, gallery, "SQ8", done.append)
    assert sum(done) == rates.images == len(pictures)
    assert rates.file_bytes == pytest.approx(np.mean([len(picture) for picture in pictures]))
    assert 0 < rates.embed_s < 1
    assert min(rates.products_per_s, rates.scan_bytes_per_s) > 1e7


def test_the_catalogue_is_as_large_as_planned(
    small_model: EmbeddingSession, pictures: list[bytes], tmp_path: Path
) -> None:
    gallery = open_folder(write_gallery(tmp_path / "gallery", pictures), "gallery")
    rates = measure_rates(small_model, gallery, "SQ8")
    with edit_catalogue(tmp_path / "catalogue.sqlite") as catalogue:
        catalogue.add([NewItem(f"img/{i:012}.png", None, f"{i * 7919:064x}", 10_000, i) for i in range(20_000)])
    assert (tmp_path / "catalogue.sqlite").stat().st_size / 20_000 == pytest.approx(rates.item_bytes, rel=0.15)


def test_a_sample_that_cannot_be_read_is_refused(small_model: EmbeddingSession, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images of 'sample' can be read"):
        measure_rates(small_model, open_folder(tmp_path, "sample"), "SQ8")


def test_training_and_filling_take_about_as_long_as_planned() -> None:
    """Core time on one thread, within a factor of three: other programs share the caches."""
    vectors = np.random.default_rng(0).standard_normal((150_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with one_thread():
        rates = replace(RATES, products_per_s=measure_products(64))
        made = plan(len(vectors), 64, rates=rates)
        started = time.process_time()
        make_faiss(made.factory, vectors, np.arange(len(vectors)))
        took = time.process_time() - started
    planned = find(made, "training the lists").least + find(made, "filling the lists").least
    assert planned / 3 < took < 3 * planned
