"""A Milvus Lite server in a process of its own, for the tests of indexes in Milvus."""

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from indistill.retrieval.milvus.collection import (
    CollectionState,
    Kind,
    choose_search,
    connect,
    create_collection,
    upsert_items,
)
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.store.catalogue import CatalogueItem

MISSING = [name for name in ("pymilvus", "milvus_lite", "tenacity") if importlib.util.find_spec(name) is None]
needs_milvus = pytest.mark.skipif(bool(MISSING), reason=f"the extra 'milvus' is not installed: {', '.join(MISSING)}")


@dataclass
class LiteServer:
    """A server of the collections in a folder, on a free port of this machine."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begins to start; clients wait for it."""
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self.folder), "--host", "127.0.0.1"]
        command += ["--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        """Ends it as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def run_milvus_lite(folder: Path) -> Iterator[LiteServer]:
    """Runs a server that is new and empty."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = LiteServer(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def fill_collection(
    location: MilvusLocation,
    items: Sequence[CatalogueItem],
    vectors: np.ndarray,
    kind: Kind = "FLAT",
    *,
    complete: bool = True,
) -> CollectionState:
    """Makes a collection of images with any vectors (N, D), of a model that does not exist."""
    state = CollectionState(
        complete=complete,
        generation=1,
        model_sha256="0" * 64,
        preprocessing={},
        dimension=vectors.shape[1],
        root="/gallery",
        kind=kind,
        parameters=choose_search(kind, len(items)),
        version="0",
    )
    connection = connect(location)
    create_collection(connection, state, len(items))
    upsert_items(connection, items, vectors)
    connection.call("flush")
    connection.close()
    return state
