"""Searching a collection of any vectors: ties, approximate types, and a server that is killed while clients work."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from indistill.errors import IndexFolderError, InputError
from indistill.retrieval.milvus import client
from indistill.retrieval.milvus.collection import Kind, connect, count_rows, upsert_items
from indistill.retrieval.milvus.index import MilvusIndex
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.where import parse_where
from tests.retrieval.milvus import LiteServer, fill_collection, needs_milvus, run_milvus_lite

pytestmark = [pytest.mark.slow, needs_milvus]


def test_equal_scores_come_in_the_order_of_ids_also_at_the_last_place(server: LiteServer) -> None:
    items = [CatalogueItem(i, f"{i}.png", None, f"{i:064x}", 1, 1) for i in range(1, 41)]
    vectors = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (40, 1))
    location = MilvusLocation(server.uri, "ties")
    fill_collection(location, items, vectors)
    with MilvusIndex(location) as index:
        _, ids = index.search_vectors(vectors[:2], 3)
        assert ids.tolist() == [[1, 2, 3]] * 2
        _, ids = index.search_vectors(vectors[:1], 2, np.array([9, 7, 30]))
        assert ids.tolist() == [[7, 9]]
        with pytest.raises(InputError, match=r"at most 16,384 hits of a query, not 20,000"):
            index.search(vectors[:1], 20_000)


@pytest.mark.parametrize("kind", ["HNSW", "IVF_FLAT"])
def test_an_approximate_type_finds_95_of_100_of_the_nearest(server: LiteServer, kind: Kind) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16))
    vectors = (centres[rng.integers(0, 100, 4000)] + 0.7 * rng.normal(size=(4000, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [CatalogueItem(i, f"{i}.png", None, f"{i:064x}", i, 1) for i in range(1, 3901)]
    location = MilvusLocation(server.uri, f"near_{kind}")
    fill_collection(location, items, vectors[:3900], kind)
    queries = vectors[3900:]
    with MilvusIndex(location) as index:
        scores, ids = index.search_vectors(queries, 10)
        exact = queries @ vectors[:3900].T
        nearest = np.sort(exact, axis=1)[:, ::-1][:, :10]
        assert (scores >= nearest[:, -1:] - 1e-6).mean() >= 0.95
        np.testing.assert_allclose(scores, np.take_along_axis(exact, ids - 1, 1), atol=1e-6)
        hits = index.search(queries[:5], 30, where=parse_where("size > 3860"))  # a filter leaves no row short
        assert [[hit.id for hit in row] for row in hits] == [
            (3861 + np.argsort(-row, kind="stable")[:30]).tolist() for row in exact[:5, 3860:]
        ]


def test_what_was_acknowledged_outlives_kill_9_and_a_client_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [CatalogueItem(i, f"{i}.png", "cat", f"{i:064x}", i, 1) for i in range(1, 2001)]
    vectors = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with run_milvus_lite(tmp_path / "data") as server:
        location = MilvusLocation(server.uri, "kept")
        state = fill_collection(location, items[:1000], vectors[:1000])
        with MilvusIndex(location) as reader, ThreadPoolExecutor(1) as worker:
            expected = reader.search_vectors(vectors[:5], 10)
            acknowledged: list[int] = []

            def write() -> None:
                connection = connect(location)
                for start in range(1000, 2000, 50):
                    upsert_items(connection, items[start : start + 50], vectors[start : start + 50])
                    acknowledged.append(start)
                connection.close()

            writing = worker.submit(write)
            while len(acknowledged) < 5:
                time.sleep(0.01)
            server.kill()
            kept = 50 * len(acknowledged)
            server.start()
            with ThreadPoolExecutor(4) as readers:  # with the client that they had, as those of a service
                found = list(
                    readers.map(lambda _: reader.search_vectors(vectors[:5], 10, np.arange(1, 1001)), range(8))
                )
            for scores, ids in found:
                np.testing.assert_array_equal(ids, expected[1])
                np.testing.assert_allclose(scores, expected[0], atol=1e-6)
            assert count_rows(reader.connection) >= 1000 + kept
            writing.result(60)
            reader.refresh()
            assert reader.manifest.items == 2000
            assert reader.state == state
            stored_ids, stored, _ = reader.read_vectors()
            assert stored_ids.tolist() == list(range(1, 2001))
            np.testing.assert_array_equal(stored, vectors)
            server.kill()
            monkeypatch.setattr(client, "PATIENCE_S", 0.5)
            with pytest.raises(IndexFolderError, match=r"no Milvus server answers at http://127.0.0.1:\d+ \(tried"):
                reader.search_vectors(vectors[:1], 1)
