"""The catalogue of an index: what each id stands for, in SQLite."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indistill.errors import IndexFolderError

SCHEMA = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    path TEXT NOT NULL UNIQUE,            -- relative to the gallery's root
    label TEXT,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL
)
"""
IDS_PER_QUERY = 500


@dataclass(frozen=True)
class CatalogueItem:
    """An indexed image; the path is relative to the gallery's root."""

    id: int
    path: str
    label: str | None
    sha256: str
    size_bytes: int
    modified_ns: int


def write_catalogue(path: Path, items: Sequence[CatalogueItem]) -> None:
    """Creates a catalogue."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(SCHEMA)
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)",
            ((i.id, i.path, i.label, i.sha256, i.size_bytes, i.modified_ns) for i in items),
        )


class Catalogue:
    """A catalogue opened for reading. Use it as a context.

    Raises:
        IndexFolderError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise IndexFolderError(f"the index is damaged: {path} is missing; build it again")
        self._path = path
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that do not exist are left out."""
        found: dict[int, CatalogueItem] = {}
        for start in range(0, len(ids), IDS_PER_QUERY):
            chunk = list(ids[start : start + IDS_PER_QUERY])
            marks = ", ".join("?" * len(chunk))
            for row in self._select(f"SELECT * FROM items WHERE id IN ({marks})", chunk):
                found[row[0]] = CatalogueItem(*row)
        return found

    def list_labels(self) -> list[tuple[int, str | None]]:
        """Returns id and label of all items, by id."""
        return [(row[0], row[1]) for row in self._select("SELECT id, label FROM items ORDER BY id")]

    def _select(self, statement: str, values: Sequence[int] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise IndexFolderError(f"the index is damaged: {self._path}: {error}; build it again") from error
