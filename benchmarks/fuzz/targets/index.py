"""Index folders: the catalogue changed in bytes, in schema and in values, manifest, embeddings, journal and names."""

import hashlib
import json
import os
import random
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from benchmarks.fuzz.damage import ODD_NUMBERS, ODD_TEXTS, damage, damage_json, require_line
from benchmarks.fuzz.originals import FACTORIES, provide
from indistill.errors import InputError
from indistill.files.bounded import read_bounded
from indistill.retrieval.index import Index
from indistill.retrieval.opening import count_outside, describe_index
from indistill.retrieval.store.changes import remove_items
from indistill.retrieval.store.journal import count_kept, open_journal
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, merge_indexes, rebuild_index, verify_index
from indistill.retrieval.where import parse_where

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, 'p' || i, NULL, '', 0, 0 FROM n"
STATEMENTS = (
    "CREATE TRIGGER t AFTER DELETE ON items BEGIN DELETE FROM items; END",
    "CREATE TRIGGER t BEFORE DELETE ON items BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER t AFTER UPDATE ON items BEGIN DELETE FROM items WHERE id = NEW.id; END",
    "CREATE TRIGGER t AFTER INSERT ON items BEGIN UPDATE items SET path = '/etc/passwd'; END",
    f"ALTER TABLE items RENAME TO stuff; CREATE VIEW items AS {ENDLESS} LIMIT 24",
    f"ALTER TABLE items RENAME TO stuff; CREATE VIEW items AS {ENDLESS}",
    "ALTER TABLE items RENAME TO stuff; CREATE VIEW items AS SELECT id, zeroblob(500000000) FROM stuff",
    "ALTER TABLE items RENAME TO stuff; CREATE VIRTUAL TABLE items USING fts5(path, label)",
    "ALTER TABLE items ADD COLUMN more TEXT DEFAULT 'x'",
    "ALTER TABLE items ADD COLUMN more AS (hex(zeroblob(300000000)))",
    "CREATE INDEX slow ON items (hex(zeroblob(1000 * id)))",
    "DROP TABLE items",
    "DROP INDEX items_by_content",
    "PRAGMA journal_mode = WAL",
    "PRAGMA encoding = 'UTF-16'; VACUUM",
    "PRAGMA page_size = 65536; VACUUM",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 1 + abs(random() % 9)",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE TABLE items (id, path)' WHERE name = 'items'",
    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET type = 'view' WHERE name = 'items'",
    "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    "DELETE FROM sqlite_sequence",
    "UPDATE items SET id = id + 1000",
    "UPDATE items SET id = -id",
    "DELETE FROM items WHERE id % 2",
)
COLUMNS = ("id", "path", "label", "sha256", "size_bytes", "modified_ns")


def prepare() -> None:
    """Makes the files that are damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Damages an index, at times with checksums that fit again, and does with it what the commands do."""
    index = folder / "index"
    shutil.copytree(provide(f"{random.choice(sorted(FACTORIES))}.index"), index)
    (generation,) = (index / "generations").iterdir()
    for change in random.choices(
        (_change_rows, _change_schema, _change_catalogue, _change_manifest, _change_file), k=random.choice((1, 1, 2))
    ):
        with suppress(OSError, ValueError, sqlite3.Error):  # of a file that is gone or changed already
            change(index, generation, random)
    if random.random() < 0.8:
        seal(generation)
    _read(index)
    for use in random.sample((_remove, _compact, _rebuild, _merge, _open_journal), 2):
        copy = folder / use.__name__
        shutil.copytree(index, copy, symlinks=True, copy_function=_copy)
        try:
            use(copy, random)
        except InputError as error:
            require_line(error)
        else:
            assert not [line for line in (_find_problems(copy) or ()) if use is _rebuild and "index.faiss" in line]


def seal(generation: Path) -> None:
    """Writes the sizes and checksums of files as they are into the manifest, as one would who means harm."""
    path = generation / "manifest.json"
    try:
        content = json.loads(read_bounded(path).decode("utf-8", "surrogateescape"))
        for name in content["files"]:
            data = read_bounded(generation / name)
            content["files"][name] = hashlib.sha256(data).hexdigest()
            content["sizes"][name] = len(data)
        path.write_text(json.dumps(content), encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return


def _change_rows(_: Path, generation: Path, generator: random.Random) -> None:
    column = generator.choice(COLUMNS)
    values = [*ODD_NUMBERS, *ODD_TEXTS, None, 0.5, float("inf"), b"\xff\xfe", b"", "/etc/passwd", "../../x"]
    value = generator.choice(values)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = str(value)
    with closing(sqlite3.connect(generation / "catalogue.sqlite")) as connection:
        try:
            which = generator.choice(("id = 3", "id % 2", "1"))
            connection.execute(f"UPDATE OR IGNORE items SET {column} = ? WHERE {which}", (value,))
            if isinstance(value, bytes) and generator.random() < 0.5:  # a text that is not UTF-8
                connection.execute(f"UPDATE OR IGNORE items SET {column} = CAST(? AS TEXT) WHERE {which}", (value,))
            connection.commit()
        except (sqlite3.Error, UnicodeError):
            connection.rollback()


def _change_schema(_: Path, generation: Path, generator: random.Random) -> None:
    with closing(sqlite3.connect(generation / "catalogue.sqlite", isolation_level=None)) as connection:
        try:
            connection.executescript(generator.choice(STATEMENTS) + ";")
        except sqlite3.Error:
            return
    for path in generation.glob("catalogue.sqlite-*"):
        path.unlink()


def _change_catalogue(_: Path, generation: Path, generator: random.Random) -> None:
    path = generation / "catalogue.sqlite"
    path.write_bytes(damage(read_bounded(path), generator))


def _change_manifest(_: Path, generation: Path, generator: random.Random) -> None:
    path = generation / "manifest.json"
    text = read_bounded(path).decode()
    if generator.random() < 0.8:
        path.write_text(damage_json(text, generator), encoding="utf-8")
    else:
        path.write_bytes(damage(text.encode(), generator))


def _change_file(index: Path, generation: Path, generator: random.Random) -> None:
    """Changes, swaps, links or removes another file; what FAISS reads is for the target `faiss`."""
    names = ["vectors-00000001.npy", "skipped.jsonl", "model.onnx", "manifest.json", "catalogue.sqlite", "index.faiss"]
    path = generation / generator.choice(names)
    match generator.randrange(7):
        case 0:
            path.unlink()
        case 1:
            other = generation / generator.choice(names)
            if other.exists() and path.exists() and "index.faiss" not in (path.name, other.name):
                content = read_bounded(other)
                shutil.copyfile(path, other) if path != other else None
                path.write_bytes(content)
        case 2:
            target = generator.choice(("/etc/passwd", "/dev/zero", "..", path.name, "/nothing"))
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        case 3:
            path.unlink(missing_ok=True)
            os.mkfifo(path)
        case 4:
            (index / "CURRENT").write_bytes(damage(b"00000001\n", generator))
        case _:
            segment = generation / "vectors-00000001.npy"
            segment.write_bytes(damage(read_bounded(segment), generator))


def _copy(source: str, target: str) -> None:
    if Path(source).is_file():
        shutil.copyfile(source, target, follow_symlinks=False)
    else:
        os.mkfifo(target)


def _read(index: Path) -> None:
    for use in (describe_index, count_outside, _find_problems, _search):
        try:
            use(index)
        except InputError as error:
            require_line(error)


def _find_problems(index: Path) -> tuple[str, ...]:
    return verify_index(index).problems


def _search(index: Path) -> None:
    with Index(index) as opened:
        queries = np.eye(3, opened.manifest.dimension, dtype=np.float32)
        for options in ({}, {"rerank": 10}, {"where": parse_where("size > 10 and path like '%1%'")}):
            try:
                for hit in (hit for hits in opened.search(queries, 5, **options) for hit in hits):
                    assert isinstance(hit.path, str)
                    assert hit.label is None or isinstance(hit.label, str)
            except InputError as error:
                require_line(error)
        for item in opened.list_items():
            assert isinstance(item.size_bytes, int)
            assert isinstance(item.modified_ns, int)
            assert isinstance(item.sha256, str)
        opened.has_labels()
        opened.read_vectors()


def _remove(index: Path, generator: random.Random) -> None:
    remove_items(index, Selection(ids=(generator.randint(1, 24),)))
    with Index(index) as opened:
        assert len(list(opened.list_items())) == opened.manifest.items


def _compact(index: Path, _: random.Random) -> None:
    compact_index(index)


def _rebuild(index: Path, _: random.Random) -> None:
    rebuild_index(index)


def _merge(index: Path, _: random.Random) -> None:
    merge_indexes([index, provide("flat.index")], index.with_name("merged"))


def _open_journal(index: Path, generator: random.Random) -> None:
    content = provide("pending.vectors").read_bytes()
    sha256 = content.split()[3].decode()
    path = index / "pending.vectors"
    path.write_bytes(damage(content, generator))
    assert count_kept(path) >= 0
    with open_journal(path, sha256, 64) as journal:
        assert all(vector.shape == (64,) for vector in journal.values())
