"""The catalogue of an index: what each id stands for, in SQLite."""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from indistill.errors import IndexFolderError, InputError, describe_os_error, escape_text
from indistill.files.bounded import require_regular

SCHEMA = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again
    path TEXT NOT NULL UNIQUE,            -- relative to the gallery's root, or absolute outside it
    label TEXT,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL
);
CREATE INDEX items_by_content ON items (sha256);
"""
VALUES_PER_QUERY = 500
MAX_VALUE_BYTES = 2**24
# Pages of a damaged file may lead to one another without end. A row of ours takes 80 bytes or more, and some tens of
# steps; a long condition takes some hundreds.
STEPS_COUNTED, LEAST_STEPS, STEPS_PER_BYTE = 10**6, 10**7, 10
SQLITE_OWN = {("table", "sqlite_sequence"), ("index", "sqlite_autoindex_items_1")}  # which SQLite makes by itself
# Of the columns in their order; SQLite stores any type anywhere.
ROW_TYPES = {(int, str, label, str, int, int) for label in (str, type(None))}
LARGEST_ID = 2**63 - 1

Value = str | int | float


@dataclass(frozen=True)
class NewItem:
    """An image that has no id yet; the path is relative to the gallery's root, or absolute outside it."""

    path: str
    label: str | None
    sha256: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class CatalogueItem:
    """An indexed image; the path is relative to the gallery's root, or absolute outside it."""

    id: int
    path: str
    label: str | None
    sha256: str
    size_bytes: int
    modified_ns: int


class Catalogue:
    """A catalogue opened for reading, by any number of threads. Use it as a context, or close it.

    Raises:
        IndexFolderError: it is missing, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock, self._steps = Lock(), 0
        try:
            most = LEAST_STEPS + STEPS_PER_BYTE * require_regular(path)
            path.open("rb").close()  # whose error says why
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
            )
        except FileNotFoundError as error:
            raise IndexFolderError(f"the index is damaged: {path} is missing; build it again") from error
        except (OSError, sqlite3.DatabaseError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else error
            raise IndexFolderError(f"the index cannot be read: {path}: {reason}") from error
        try:
            _distrust(self._connection)
            self._connection.set_progress_handler(lambda: self._count_steps(most), STEPS_COUNTED)
            _require_schema(self.select("SELECT type, name, sql FROM sqlite_master"), path)
        except IndexFolderError:
            self.close()
            raise

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def find_items(self, ids: Sequence[int]) -> dict[int, CatalogueItem]:
        """Returns the items of some ids, by id; ids that do not exist are left out."""
        possible = [i for i in ids if 0 < i <= LARGEST_ID]
        return {row[0]: self._read_item(row) for row in self._select_among("*", "id", possible)}

    def find_paths(self, paths: Sequence[str]) -> dict[str, CatalogueItem]:
        """Returns the items of some paths, by path; paths that are not there are left out."""
        possible = [path for path in paths if is_text(path)]
        return {row[1]: self._read_item(row) for row in self._select_among("*", "path", possible)}

    def find_content(self, sha256: str) -> int | None:
        """Returns the id of an image with this content, None where there is none."""
        found = self.select("SELECT id FROM items WHERE sha256 = ? ORDER BY id LIMIT 1", [sha256])
        return found[0][0] if found else None

    def list_items(self) -> Iterator[CatalogueItem]:
        """Yields all items, by id."""
        for row in self.select("SELECT * FROM items ORDER BY id"):
            yield self._read_item(row)

    def list_page(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the first items with an id above `after`, by id."""
        rows = self.select("SELECT * FROM items WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [self._read_item(row) for row in rows]

    def list_labels(self) -> list[tuple[int, str | None]]:
        """Returns id and label of all items, by id."""
        rows = self.select("SELECT id, label FROM items ORDER BY id")
        for _, label in rows:
            if label is not None and not isinstance(label, str):
                raise self._explain("a label is no text")
        return rows

    def select(self, statement: str, values: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Returns the rows of a statement; whatever a user wrote belongs into `values`.

        Raises:
            IndexFolderError: the catalogue is damaged.
        """
        try:
            with self._lock:
                self._steps = 0
                return self._connection.execute(statement, values).fetchall()
        except (sqlite3.DatabaseError, MemoryError) as error:
            raise self._explain(str(error) or "it has too many values") from error

    def _count_steps(self, most: int) -> bool:
        """Returns whether a statement has taken more steps of SQLite's machine than it can with so large a file."""
        self._steps += STEPS_COUNTED
        return self._steps > most

    def _read_item(self, row: tuple[Any, ...]) -> CatalogueItem:
        if tuple(map(type, row)) not in ROW_TYPES:
            raise self._explain(f"what it says of id {row[0]} is no image")
        return CatalogueItem(*row)

    def _explain(self, reason: str) -> IndexFolderError:
        return IndexFolderError(f"the index is damaged: {self._path}: {escape_text(reason)}; build it again")

    def _select_among(self, columns: str, column: str, values: Sequence[Value]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(values), VALUES_PER_QUERY):
            chunk = values[start : start + VALUES_PER_QUERY]
            marks = ", ".join("?" * len(chunk))
            yield from self.select(f"SELECT {columns} FROM items WHERE {column} IN ({marks})", chunk)


class CatalogueDraft:
    """A catalogue being changed, which no reader has open yet. Use `edit_catalogue`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Adds images and returns their ids, which ascend."""
        statement = "INSERT INTO items (path, label, sha256, size_bytes, modified_ns) VALUES (?, ?, ?, ?, ?)"
        return [int(self._connection.execute(statement, _list_values(item)).lastrowid or 0) for item in items]

    def start_ids(self, first: int) -> None:
        """Makes `first`, which must be above all ids there are and were, the id of the next image."""
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'items'")
        self._connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('items', ?)", (first - 1,))

    def remove(self, ids: Sequence[int]) -> None:
        """Removes images; their ids are never used again."""
        self._connection.executemany("DELETE FROM items WHERE id = ?", [(i,) for i in ids])

    def replace(self, items: Sequence[CatalogueItem]) -> None:
        """Changes what the catalogue says of images that it has; they may change paths with one another."""
        self._connection.executemany(
            "UPDATE items SET path = char(0) || id WHERE id = ?", [(item.id,) for item in items]
        )
        self._connection.executemany(
            "UPDATE items SET path = ?, label = ?, sha256 = ?, size_bytes = ?, modified_ns = ? WHERE id = ?",
            [(*_list_values(item), item.id) for item in items],
        )

    def vacuum(self) -> None:
        """Gives back the space of what was removed; before any other change."""
        self._connection.execute("VACUUM")

    def count(self) -> int:
        """Returns the number of images."""
        return int(self._connection.execute("SELECT COUNT(*) FROM items").fetchone()[0])


@contextmanager
def edit_catalogue(path: Path) -> Iterator[CatalogueDraft]:
    """Yields a catalogue to be changed: an existing file, or a new one. All changes are kept, or none.

    Raises:
        InputError: a label or a path is not UTF-8.
    """
    new = not path.exists()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")  # whoever puts the generation in force syncs it
        connection.execute("PRAGMA journal_mode = MEMORY")
        if new:
            connection.executescript(SCHEMA)
        else:
            _distrust(connection)
            _require_schema(connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall(), path)
        try:
            with connection:
                yield CatalogueDraft(connection)
        except UnicodeEncodeError as error:
            raise InputError(f"{escape_text(str(error.object))} is not valid UTF-8: no index can hold it") from error


def _distrust(connection: sqlite3.Connection) -> None:
    """Has SQLite run nothing that stands in a file, and take no more memory for a value than any of ours has."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)


def _require_schema(found: Sequence[tuple[Any, ...]], path: Path) -> None:
    """Raises IndexFolderError where a catalogue has other parts than ours: views, triggers, columns that compute."""
    ours = {_simplify(statement) for statement in SCHEMA.split(";\n")} - {""}
    made = [row for row in found if (row[0], row[1]) not in SQLITE_OWN]
    if {_simplify(str(row[2])) for row in made} != ours or len(made) != len(ours):
        names = ", ".join(f"{kind} {name}" for kind, name, _ in made) or "nothing"
        raise IndexFolderError(
            f"the index is damaged: {path} holds something else than a catalogue ({escape_text(names)}); build it again"
        )


def _simplify(statement: str) -> str:
    """Returns a statement without comments and with single spaces."""
    return " ".join(re.sub(r"--[^\n]*", "", statement).split())


def is_text(name: str) -> bool:
    """Returns whether a name of a file is UTF-8: any bytes but NUL and a slash may be one."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_values(item: NewItem | CatalogueItem) -> tuple[str, str | None, str, int, int]:
    return item.path, item.label, item.sha256, item.size_bytes, item.modified_ns
