"""What lies between an index in Milvus and its server: connections, several clients, and files of someone else."""

import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indistill.data.sets import open_folder
from indistill.errors import IndexFolderError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Index
from indistill.retrieval.milvus.collection import connect, read_collection_state, write_collection_state
from indistill.retrieval.milvus.index import MilvusIndex
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.milvus.push import push_index
from indistill.retrieval.store.build import build_index
from indistill.retrieval.store.catalogue import CatalogueItem
from tests.retrieval.conftest import write_gallery
from tests.retrieval.milvus import LiteServer, fill_collection, needs_milvus

pytestmark = [pytest.mark.slow, needs_milvus]


@pytest.fixture(scope="module")
def location(server: LiteServer) -> MilvusLocation:
    """Returns a collection of one image."""
    location = MilvusLocation(server.uri, "client")
    fill_collection(location, [CatalogueItem(1, "1.png", None, "0" * 64, 1, 1)], np.ones((1, 2), dtype=np.float32))
    return location


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], small_model: EmbeddingSession) -> Path:
    """Returns an index of two images."""
    root = tmp_path_factory.mktemp("local")
    images = write_gallery(root / "gallery", pictures[:2])
    build_index(open_folder(images, "gallery"), small_model, root / "index")
    return root / "index"


def test_a_call_whose_client_another_thread_has_closed_is_given_again(location: MilvusLocation) -> None:
    connection = connect(location)
    clients: list[Any] = []

    def use(client: Any) -> bool:
        clients.append(client)
        if len(clients) == 1:
            connection._leave(client)  # as another thread does that finds the server away
        return bool(client.has_collection(location.collection))

    assert connection._try(use)
    assert len(clients) == 2
    connection._leave(clients[0])  # so does one that comes late: the new client stays
    assert connection._try(lambda client: client) is clients[1]
    connection.close()


def test_a_closed_index_stays_closed(location: MilvusLocation) -> None:
    index = MilvusIndex(location)
    index.close()
    index.close()
    with pytest.raises(ValueError, match=r"the connection to http://.*#client is closed"):
        index.find_items([1])


def test_two_clients_write_the_state_at_the_same_time(location: MilvusLocation) -> None:
    def write(_: int) -> None:
        connection = connect(location)
        state = read_collection_state(connection)
        assert state is not None
        for generation in range(1, 30):
            write_collection_state(connection, replace(state, generation=generation))
        connection.close()

    with ThreadPoolExecutor(3) as clients:
        assert list(clients.map(write, range(3))) == [None] * 3


def test_a_collection_that_is_missing_names_the_command_that_makes_it(server: LiteServer) -> None:
    with pytest.raises(
        IndexFolderError, match=r"has no collection 'none': make it by 'indistill index push INDEX --to"
    ):
        MilvusIndex(MilvusLocation(server.uri, "none"))


@pytest.mark.parametrize("kind", ["folder", "index", "SQLite", "orphan", "long"])
def test_what_is_not_of_milvus_lite_is_left_as_it_is(
    tmp_path: Path, folder: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "photos.db"
    message = "photos.db exists and is not of Milvus Lite, whose .db is a folder of its own: name another"
    if kind == "folder":
        place.mkdir()
        (place / "a.png").write_bytes(b"a")
    elif kind == "index":
        shutil.copytree(folder, place)
    elif kind == "SQLite":
        with closing(sqlite3.connect(place)) as theirs:
            theirs.execute("CREATE TABLE users (name)")
    elif kind == "orphan":
        place, message = place / "x.db", "x.db cannot be made: there is no folder"
    else:
        place, message = place.with_name("a" * 300 + ".db"), "cannot be opened: another process has it open, or it cann"
    before = sorted(tmp_path.rglob("*"))
    location = MilvusLocation(str(place), "c")
    with Index(folder) as index, pytest.raises(IndexFolderError, match=message):
        push_index(index, location)
    with pytest.raises(IndexFolderError, match="does not exist" if kind in ("orphan", "long") else message):
        MilvusIndex(location)
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")
