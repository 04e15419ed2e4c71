"""A generation of an index, opened: vectors, model and catalogue, which belong together."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Lock

from indistill.errors import IndexFolderError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.catalogue import CatalogueItem
from indistill.retrieval.index import CATALOGUE, CURRENT, Index, open_model

ATTEMPTS = 3
COLUMNS = ", ".join(field.name for field in fields(CatalogueItem))
Stamp = tuple[int, int, int]


class Items:
    """The catalogue of a generation, read by any thread; it stays readable when the generation is deleted."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        try:
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"the index is damaged: {path}: {error}") from error
        self.list_after(-1, 1)  # what is damaged is found now

    def find(self, item: int) -> CatalogueItem | None:
        """Returns an item, or None if there is none of this id."""
        found = self._select("id = ?", (item, 1))
        return found[0] if found else None

    def list_after(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the items of larger ids, in their order."""
        return self._select("id > ? ORDER BY id", (after, limit))

    def _select(self, condition: str, values: Sequence[int]) -> list[CatalogueItem]:
        try:
            with self._lock, closing(self._connection.cursor()) as cursor:
                rows = cursor.execute(f"SELECT {COLUMNS} FROM items WHERE {condition} LIMIT ?", values).fetchall()
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"the index is damaged: {self._path}: {error}") from error
        return [CatalogueItem(*row) for row in rows]


@dataclass(frozen=True)
class Opened:
    """What answers: an index, its model and its catalogue."""

    index: Index
    session: EmbeddingSession
    items: Items


def read_stamp(folder: Path) -> Stamp:
    """Returns what changes when another generation, or another index, is put in force.

    Raises:
        IndexFolderError: the folder is no index.
    """
    try:
        state = (folder / CURRENT).stat()
    except OSError as error:
        raise IndexFolderError(f"{folder} is not an index: its {CURRENT} cannot be read") from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def open_generation(folder: Path, threads: int = 0, session: EmbeddingSession | None = None) -> Opened:
    """Returns the generation in force.

    Args:
        folder: the index folder.
        threads: of ONNX Runtime; 0 for one for each core.
        session: an open model, which is used again if it is the one.

    Raises:
        IndexFolderError: the index is missing, damaged, or replaced again and again.
        ModelError: its model cannot be run.
    """
    for _ in range(ATTEMPTS):
        stamp = read_stamp(folder)
        try:
            index = Index(folder)
            if session is None or session.sha256 != index.manifest.model_sha256:
                session = open_model(folder, threads=threads)
            if session.sha256 == index.manifest.model_sha256:
                generation = folder / "generations" / f"{index.manifest.generation:08d}"
                return Opened(index, session, Items(generation / CATALOGUE))
        except IndexFolderError:
            if read_stamp(folder) == stamp:
                raise
    raise IndexFolderError(f"the index {folder} is replaced faster than it can be opened; try again")
