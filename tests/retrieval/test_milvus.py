"""An index in Milvus answers as the one in a folder does; what was acknowledged outlives a server that is killed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indistill.data.sets import open_folder
from indistill.errors import ExistsError, IndexFolderError, InputError
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.index import Index
from indistill.retrieval.milvus import client
from indistill.retrieval.milvus.collection import (
    Kind,
    connect,
    count_rows,
    read_collection_state,
    upsert_items,
    write_collection_state,
)
from indistill.retrieval.milvus.edit import choose_ids
from indistill.retrieval.milvus.index import MilvusIndex
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.milvus.model import locate_model
from indistill.retrieval.milvus.push import push_index
from indistill.retrieval.opening import open_index, open_model
from indistill.retrieval.search import Query, SearchOptions, search_images
from indistill.retrieval.serve.settings import Settings
from indistill.retrieval.store.build import build_index
from indistill.retrieval.store.catalogue import CatalogueItem, NewItem
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.edit import COUNTS
from indistill.retrieval.store.generations import PENDING
from indistill.retrieval.store.journal import Journal
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.where import parse_where
from tests.retrieval.conftest import write_gallery
from tests.retrieval.milvus import LiteServer, needs_milvus, run_milvus_lite
from tests.retrieval.serving import serve_index

pytestmark = [pytest.mark.slow, needs_milvus]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Returns a home whose ~/.cache this module may fill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield Path("~").expanduser()


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    """Returns the small model with another preprocessing."""
    path = tmp_path_factory.mktemp("other") / "other.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    torch.manual_seed(0)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32, mean=(0.4, 0.4, 0.4)), pixels, path)
    return EmbeddingSession(path)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> Path:
    """Returns forty images, two of them twice, and one with a name that no filter can hold."""
    folder = write_gallery(tmp_path_factory.mktemp("images") / "gallery", pictures)
    (folder / "dog" / "again.png").write_bytes(pictures[0])
    (folder / "dog" / 'd\u00f6g\'s "1".png').write_bytes(pictures[1])
    (folder / "cat" / "a\nb.png").write_bytes(pictures[0])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gallery: Path, small_model: EmbeddingSession) -> Path:
    out = tmp_path_factory.mktemp("local") / "index"
    build_index(open_folder(gallery, "gallery"), small_model, out)
    return out


@pytest.fixture(scope="module")
def pushed(server: LiteServer, folder: Path) -> MilvusLocation:
    return push(folder, server, "pushed")


def push(folder: Path, server: LiteServer, name: str, kind: Kind | None = None) -> MilvusLocation:
    location = MilvusLocation(server.uri, name)
    with Index(folder) as index:
        push_index(index, location, kind)
    return location


@pytest.fixture
def living(
    server: LiteServer,
    tmp_path: Path,
    pictures: list[bytes],
    small_model: EmbeddingSession,
    request: pytest.FixtureRequest,
) -> tuple[Path, Path, MilvusLocation]:
    """Returns a gallery of ten images, its index, and the same index in Milvus, which a test may change."""
    images = write_gallery(tmp_path / "gallery", pictures[:10])
    build_index(open_folder(images, "gallery"), small_model, tmp_path / "index")
    name = "".join(sign if sign.isalnum() else "_" for sign in request.node.name)[:100]
    return images, tmp_path / "index", push(tmp_path / "index", server, name)


CONDITIONS = [
    None,
    "label = 'cat'",
    "not label = 'cat' and size > 0",
    "path like '%0%'",
    "path in ('cat/00.png', 'dog/d\u00f6g''s \"1\".png') or id > 30",
    "label is null",
    "id in (1, 2, 3) or path = 'cat/a\nb.png'",
]


@pytest.fixture(scope="module", params=["FLAT", "HNSW", "IVF_FLAT"])
def location(request: pytest.FixtureRequest, folder: Path, server: LiteServer) -> MilvusLocation:
    """Returns the index in a collection of each type."""
    return push(folder, server, f"same_{request.param}", request.param)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_search_gives_the_same_hits_as_the_folder(
    folder: Path, location: MilvusLocation, gallery: Path, condition: str | None
) -> None:
    where = None if condition is None else parse_where(condition)
    queries: list[Query] = [gallery / "cat" / "00.png", (gallery / "dog" / "01.png").read_bytes(), 5, 17]
    for k, options in (
        (3, SearchOptions(where)),
        (50, SearchOptions(where)),
        (5, SearchOptions(where, threshold=0.9)),
        (5, SearchOptions(where, combine=True)),
        (5, SearchOptions(where, exclude_self=True)),
        (5, SearchOptions(where, rerank=20)),
    ):
        expected = search_images(folder, queries, k=k, options=options)
        found = search_images(location, queries, k=k, options=options)
        assert (found.root, found.paths) == (expected.root, expected.paths)
        for (_, hits), (_, right) in zip(found.queries, expected.queries, strict=True):
            assert [replace(hit, score=0) for hit in hits] == [replace(hit, score=0) for hit in right]
            assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in right], abs=1e-6)


def test_a_collection_reads_as_the_folder_does(folder: Path, pushed: MilvusLocation) -> None:
    with Index(folder) as local, open_index(pushed) as remote:
        items = list(local.list_items())
        assert list(remote.list_items()) == items
        assert remote.list_page(3, 5) == local.list_page(3, 5) == items[3:8]
        assert remote.list_page(items[-1].id, 5) == []
        paths = [*(item.path for item in items), "none.png"]
        assert remote.find_paths(paths) == local.find_paths(paths)
        assert remote.find_items([1, 7, 99]) == local.find_items([1, 7, 99])
        assert remote.find_content(items[0].sha256) == local.find_content(items[0].sha256)
        assert remote.find_content("0" * 64) is None
        assert remote.has_labels() is local.has_labels() is True
        for mine, theirs in zip(remote.read_vectors(), local.read_vectors(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(remote.find_vectors([5, 2, 5]), local.find_vectors([5, 2, 5]))
        with pytest.raises(IndexFolderError, match="no image 99 any more"):
            remote.find_vectors([99])
        mine, theirs = remote.manifest, local.manifest
        for name in ("items", "dimension", "model_sha256", "root", "source", "metric"):
            assert getattr(mine, name) == getattr(theirs, name)


def test_a_push_that_was_cut_off_is_refused_until_it_is_given_again(server: LiteServer, folder: Path) -> None:
    location = push(folder, server, "cut")
    connection = connect(location)
    state = read_collection_state(connection)
    assert state is not None
    write_collection_state(connection, replace(state, complete=False))
    connection.call("delete", ids=[3, 4, 20])
    with pytest.raises(IndexFolderError, match=r"is not complete: its 'indistill index push' was cut off"):
        MilvusIndex(location)
    with Index(folder) as index:
        done: list[int] = []
        assert (first := push_index(index, location, on_progress=done.append)).sent == 3
        assert (first.present, sum(done), first.manifest.items) == (40, 43, 43)
        assert first.manifest.generation == 1
        again = push_index(index, location)
        assert (again.sent, again.present, again.manifest.generation) == (0, 43, 1)
        connection.call("delete", ids=[7])
        later = push_index(index, location)
        assert (later.sent, later.manifest.generation) == (1, 2)
        item = replace(index.find_items([9])[9], label="cow")
        upsert_items(connection, [item], index.find_vectors([9]))
        assert push_index(index, location).sent == 1
    with MilvusIndex(location) as remote:
        assert remote.find_items([9])[9].label == "cat"
    connection.close()


def test_a_push_never_mixes_indexes(
    server: LiteServer,
    folder: Path,
    gallery: Path,
    other_model: EmbeddingSession,
    tmp_path: Path,
    living: tuple[Path, Path, MilvusLocation],
) -> None:
    location = push(folder, server, "mixed")
    build_index(open_folder(gallery, "gallery"), other_model, tmp_path / "other")
    with Index(tmp_path / "other") as other, Index(living[1]) as elsewhere, Index(folder) as index:
        with pytest.raises(ExistsError, match=r"has another model \(SHA-256"):
            push_index(other, location)
        with pytest.raises(ExistsError, match="is of the gallery"):
            push_index(elsewhere, location)
        with pytest.raises(ExistsError, match="has the type FLAT, not HNSW"):
            push_index(index, location, "HNSW")
        assert push_index(other, location, "HNSW", overwrite=True).sent == 43
        with MilvusIndex(location) as remote:
            assert (remote.manifest.factory, remote.manifest.model_sha256) == ("HNSW", other.manifest.model_sha256)
        assert push_index(index, location, overwrite=True).sent == 43
        connection = connect(location)
        upsert_items(connection, [CatalogueItem(77, "new.png", None, "0" * 64, 1, 1)], index.find_vectors([1]))
        connection.close()
        with pytest.raises(ExistsError, match="has images that the index has not, such as id 77"):
            push_index(index, location)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_collection_is_not_pushed_to_itself(server: LiteServer, pushed: MilvusLocation, *, overwrite: bool) -> None:
    there = MilvusLocation(server.uri.replace("127.0.0.1", "localhost") + "/", pushed.collection)
    with MilvusIndex(pushed) as index:
        with pytest.raises(InputError, match=r"#pushed is the index .*#pushed itself: choose another --collection"):
            push_index(index, there, overwrite=overwrite)
        assert count_rows(index.connection) == 43


def test_a_collection_of_someone_else_is_left_alone(server: LiteServer, folder: Path) -> None:
    location = MilvusLocation(server.uri, "theirs")
    connection = connect(location)
    connection.call("create_collection", dimension=8)
    with Index(folder) as index, pytest.raises(ExistsError, match="exists and is not an index of indistill"):
        push_index(index, location, overwrite=True)
    with pytest.raises(IndexFolderError, match="is not an index of indistill"):
        MilvusIndex(location)
    assert connection.has_collection()
    connection.close()


def test_the_model_is_checked_by_its_hash_and_kept(
    pushed: MilvusLocation, small_model: EmbeddingSession, other_model: EmbeddingSession, gallery: Path
) -> None:
    kept = locate_model(small_model.sha256)
    assert kept.read_bytes() == small_model.path.read_bytes()
    kept.unlink()
    with pytest.raises(IndexFolderError, match=r"is not on this machine: name its file once, by --model"):
        open_model(pushed)
    with pytest.raises(IndexFolderError, match=r"other.onnx is not the model of .*#pushed \(SHA-256"):
        open_model(pushed, other_model.path)
    assert not kept.exists()
    results = search_images(pushed, [gallery / "cat" / "00.png"], k=1, model=small_model.path)
    assert results.queries[0][1][0].path == "cat/00.png"
    assert open_model(pushed).sha256 == small_model.sha256
    kept.write_bytes(other_model.path.read_bytes())
    with pytest.raises(IndexFolderError, match=r"\.onnx is damaged: delete it"):
        open_model(pushed)
    kept.write_bytes(small_model.path.read_bytes())


def test_a_collection_with_another_preprocessing_is_damaged(server: LiteServer, folder: Path) -> None:
    location = push(folder, server, "preprocessing")
    connection = connect(location)
    state = read_collection_state(connection)
    assert state is not None
    write_collection_state(connection, replace(state, preprocessing=state.preprocessing | {"crop": 0.5}))
    with pytest.raises(IndexFolderError, match="its preprocessing is not that of its model"):
        open_model(location)
    connection.close()


def test_a_property_that_cannot_be_is_one_line_and_overwritten(server: LiteServer, folder: Path) -> None:
    location = push(folder, server, "property")
    connection = connect(location)
    right = asdict(read_collection_state(connection))  # type: ignore[arg-type]
    wrong: dict[str, object] = {
        "complete": "yes",
        "generation": "1",
        "dimension": True,
        "model_sha256": "../../model",
        "root": 7,
        "source": None,
        "version": [],
        "kind": ["FLAT"],
        "preprocessing": "{}",
        "parameters": {"ef": "128"},
        "format": None,
    }
    texts = ["{", "[]", "7", "[" * 50_000, "{}", *(json.dumps(right | {key: wrong[key]}) for key in wrong)]
    texts.append(json.dumps(right | {"parameters": []}))
    for text in texts:
        connection.call("alter_collection_properties", properties={"indistill": text})
        with pytest.raises(IndexFolderError, match=r"(cannot be read|its format is None); push .* --overwrite"):
            read_collection_state(connection)
    with Index(folder) as index:
        assert push_index(index, location, overwrite=True).sent == 43
    connection.call("alter_collection_properties", properties={"indistill": '{"format": 2}'})
    with pytest.raises(IndexFolderError, match="has format 2, of a later indistill"):
        open_model(location)
    connection.close()


def list_contents(location: Path | MilvusLocation) -> dict[str, tuple[str | None, str]]:
    """Returns label and SHA-256 by path; the vectors must be those of the files."""
    with open_index(location) as index:
        items = list(index.list_items())
        assert len({item.path for item in items}) == len(items) == index.manifest.items
        ids, vectors, _ = index.read_vectors()
        assert ids.tolist() == [item.id for item in items]
        session = index.open_model()
        np.testing.assert_allclose(vectors, session.embed_images([index.root / i.path for i in items]), atol=1e-5)
        return {item.path: (item.label, item.sha256) for item in items}


def test_a_collection_follows_its_folder_as_an_index_does(
    living: tuple[Path, Path, MilvusLocation], pictures: list[bytes]
) -> None:
    images, folder, location = living
    (images / "cat" / "00.png").rename(images / "dog" / "moved.png")
    (images / "cat" / "02.png").write_bytes(pictures[30])
    (images / "dog" / "01.png").unlink()
    (images / "cow").mkdir()
    (images / "cow" / "new.png").write_bytes(pictures[31])
    before = {item.path: item.id for item in Index(folder).list_items()}
    local, remote = sync_folder(folder), sync_folder(location)
    names = (*COUNTS, "skipped")
    assert [getattr(remote, name) for name in names] == [getattr(local, name) for name in names]
    assert (remote.manifest.items, remote.manifest.generation) == (local.manifest.items, 2)
    assert list_contents(location) == list_contents(folder)
    with open_index(location) as index:
        assert index.find_paths(["dog/moved.png"])["dog/moved.png"].id == before["cat/00.png"]
        assert index.find_paths(["cat/02.png"])["cat/02.png"].id != before["cat/02.png"]
    assert sync_folder(location).manifest.generation == 2


def test_a_gallery_that_moved_keeps_the_ids_of_a_collection(
    living: tuple[Path, Path, MilvusLocation], tmp_path: Path
) -> None:
    images, folder, location = living
    before, moved = list_contents(location), images.rename(tmp_path / "moved")
    changes = sync_folder(location, str(moved), moved=True)
    assert (changes.unchanged, changes.manifest.root, changes.manifest.source) == (10, str(moved), str(moved))
    assert list_contents(location) == before
    with open_index(location) as there, open_index(folder) as here:
        assert list(there.list_items()) == list(here.list_items())


def test_images_are_added_and_removed_as_in_an_index(
    living: tuple[Path, Path, MilvusLocation], pictures: list[bytes], tmp_path: Path
) -> None:
    _, folder, location = living
    new = write_gallery(tmp_path / "elsewhere", pictures[20:24])
    for where in (folder, location):
        changes = add_images(where, [str(new)], label="cow")
        assert (changes.added, changes.manifest.items, changes.manifest.generation) == (4, 14, 2)
        changes = remove_items(where, Selection(paths=("cat/00.png",), ids=(3,), where="path like '%/03.png'"))
        assert changes.removed == 4
    assert list_contents(location) == list_contents(folder)
    with pytest.raises(InputError, match="has no id 3"):
        remove_items(location, Selection(ids=(3,)))
    with pytest.raises(InputError, match="nothing would be left"):
        remove_items(location, Selection(where="id >= 0"))
    assert count_rows(connect(location)) == 10


def test_a_change_that_is_cut_off_is_completed_without_embedding_again(
    living: tuple[Path, Path, MilvusLocation], pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, folder, location = living
    (images / "cat" / "00.png").write_bytes(pictures[20])
    (images / "cat" / "new.png").write_bytes(pictures[21])

    def fail(*_: object) -> None:
        raise IndexFolderError("the server has gone")

    with monkeypatch.context() as patch:
        patch.setattr("indistill.retrieval.milvus.edit.upsert_items", fail)
        with pytest.raises(IndexFolderError, match="has gone"):
            sync_folder(location)
    pending = location.work / PENDING
    kept = pending.read_bytes()
    assert len(kept) > 2 * 64 * 4
    remove_items(location, Selection(paths=("dog/01.png",)))
    remove_items(folder, Selection(paths=("dog/01.png",)))
    (images / "dog" / "01.png").unlink()
    assert pending.read_bytes() == kept
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", fail)  # would be called for what is embedded
        changes = sync_folder(location)
    assert (changes.added, changes.manifest.items) == (2, 10)
    assert not pending.exists()
    sync_folder(folder)
    assert list_contents(location) == list_contents(folder)


def test_two_clients_add_at_the_same_time_and_lose_nothing(
    living: tuple[Path, Path, MilvusLocation], pictures: list[bytes], tmp_path: Path
) -> None:
    _, _, location = living
    code = "import sys; from indistill.retrieval.store.changes import add_images\n"
    code += "from indistill.retrieval.opening import locate_index\n"
    code += "add_images(locate_index(sys.argv[1]), [sys.argv[2]])"
    places = [write_gallery(tmp_path / f"new{n}", pictures[20 + 5 * n : 25 + 5 * n]) for n in range(2)]
    homes = [tmp_path / f"home{n}" for n in range(2)]
    processes = []
    for place, home in zip(places, homes, strict=True):  # two machines
        models = home / ".cache" / "indistill" / "models"
        models.mkdir(parents=True)
        with open_index(location) as index:
            kept = locate_model(index.manifest.model_sha256)
        (models / kept.name).write_bytes(kept.read_bytes())
        environment = os.environ | {"HOME": str(home), "PYTHONPATH": ":".join(sys.path)}
        processes.append(subprocess.Popen([sys.executable, "-c", code, str(location), str(place)], env=environment))
    assert [process.wait(60) for process in processes] == [0, 0]
    contents = list_contents(location)
    assert len(contents) == 20
    assert sum("new0" in path for path in contents) == sum("new1" in path for path in contents) == 5


def test_ids_of_new_images_differ_and_are_the_same_for_all_clients(
    pushed: MilvusLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [NewItem(f"{n}.png", None, "0" * 64, 1, 1) for n in range(50)]
    with MilvusIndex(pushed) as index:
        ids = choose_ids(index, items)
        assert choose_ids(index, items[::-1]) == ids[::-1]
        assert len(set(ids)) == 50
        assert max(ids) < 2**53
        # with ids of so few bits that they collide, with one another and with those that are there
        monkeypatch.setattr("indistill.retrieval.milvus.edit.ID_BITS", 7)
        few = choose_ids(index, items)
        assert len(set(few) | set(range(1, 44))) == 93


def test_an_embedded_file_answers_too_and_serves_one_process(tmp_path: Path, folder: Path) -> None:
    location = MilvusLocation(str(tmp_path / "images.db"), "images")
    with pytest.raises(IndexFolderError, match=r"images.db does not exist: make it by 'indistill index push"):
        open_index(location)
    assert not (tmp_path / "images.db").exists()
    with Index(folder) as index:
        push_index(index, location)
        vectors = index.read_vectors()[1]
        with open_index(location) as remote:
            np.testing.assert_array_equal(remote.search_vectors(vectors, 5)[1], index.search_vectors(vectors, 5)[1])
            code = "import sys; from indistill.retrieval.opening import *; open_index(locate_index(sys.argv[1]))"
            environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
            other = subprocess.run(
                [sys.executable, "-c", code, str(location)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert "another process has it open" in other.stderr
            assert "Failed to start" not in other.stderr  # as Milvus Lite's logger says, with a traceback


def test_serve_answers_503_while_the_server_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_milvus_lite(tmp_path / "data") as server:
        location = push(folder, server, "served")
        monkeypatch.setattr(client, "PATIENCE_S", 0.5)
        with serve_index(location, Settings(poll_s=0.2)) as serving:
            assert serving.client.post("/search", json={"id": 5}).json()["hits"][0]["id"] == 5
            server.kill()
            answer = serving.client.post("/search", json={"id": 5})
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
            assert serving.client.get("/readyz").status_code == 200
            monkeypatch.setattr(client, "PATIENCE_S", 15.0)
            server.start()
            assert serving.client.post("/search", json={"id": 5}).json()["hits"][0]["id"] == 5
