"""An index folder from a stranger: what is in it is data, and what is no index of ours is refused in one line."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fuzz.targets.index import seal
from indistill.data.sets import open_folder
from indistill.errors import IndexFolderError, InputError, ModelError
from indistill.export.session import EmbeddingSession
from indistill.files.hashing import hash_file
from indistill.retrieval import index as index_module
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.index_types.types import read_faiss
from indistill.retrieval.opening import count_outside
from indistill.retrieval.store import checked
from indistill.retrieval.store.build import build_index
from indistill.retrieval.store.catalogue import SCHEMA, Catalogue
from indistill.retrieval.store.changes import remove_items
from indistill.retrieval.store.generations import name_generation
from indistill.retrieval.store.journal import open_journal
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, merge_indexes, rebuild_index, verify_index
from tests.retrieval.conftest import write_gallery


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes], small_model: EmbeddingSession) -> Path:
    here = tmp_path_factory.mktemp("original")
    build_index(open_folder(write_gallery(here / "gallery", pictures[:6]), "g"), small_model, here / "index")
    return here / "index"


@pytest.fixture
def index(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "index"))


def find_file(index: Path, name: str) -> Path:
    return name_generation(index, 1) / name


def write_sql(index: Path, script: str) -> None:
    """Runs SQL on the catalogue, and gives it a checksum that fits."""
    with closing(sqlite3.connect(find_file(index, "catalogue.sqlite"), isolation_level=None)) as connection:
        connection.executescript(script)
    seal(name_generation(index, 1))


USES: dict[str, Callable[[Path], object]] = {
    "search": Index,
    "info": count_outside,
    "remove": lambda index: remove_items(index, Selection(ids=(2,))),
    "compact": compact_index,
    "rebuild": rebuild_index,
    "merge": lambda index: merge_indexes([index, index], index.with_name("both")),
}
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, '', NULL, '', 0, 0 FROM n"
SCHEMAS = {
    "a trigger": "CREATE TRIGGER evil AFTER DELETE ON items BEGIN DELETE FROM items; END;",
    "a view without end": f"ALTER TABLE items RENAME TO stuff; CREATE VIEW items AS {ENDLESS};",
    "a column that computes": "ALTER TABLE items ADD COLUMN evil AS (hex(zeroblob(300000000)));",
    "an index that computes": "CREATE INDEX evil ON items (hex(zeroblob(10000 * id)));",
    "another table": "CREATE TABLE evil (x);",
    "a virtual table": "ALTER TABLE items RENAME TO stuff; CREATE VIRTUAL TABLE items USING fts5(path);",
    "no table": "DROP TABLE items;",
    "a table without a key": "DROP TABLE items; CREATE TABLE items (id, path, label, sha256, size_bytes, modified_ns);",
    "a schema that was written by hand": "PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 1;",
}


@pytest.mark.parametrize("script", SCHEMAS.values(), ids=SCHEMAS)
def test_a_catalogue_with_another_schema_is_refused_by_whatever_opens_it(index: Path, script: str) -> None:
    write_sql(index, script)
    for use in USES.values():
        with pytest.raises(IndexFolderError, match=r"the index is damaged: .*catalogue\.sqlite"):
            use(index)
    (problem,) = verify_index(index).problems
    assert "the index is damaged" in problem


def test_the_trigger_does_run_where_the_schema_is_not_looked_at(index: Path) -> None:
    write_sql(index, SCHEMAS["a trigger"])
    with closing(sqlite3.connect(find_file(index, "catalogue.sqlite"))) as connection:
        connection.execute("DELETE FROM items WHERE id = 2")
        assert connection.execute("SELECT COUNT(*) FROM items").fetchone() == (0,)


def test_a_schema_with_other_comments_is_ours(index: Path) -> None:
    with closing(sqlite3.connect(index / "other.sqlite")) as connection:
        connection.executescript(SCHEMA.replace("-- never used again", "-- of an earlier version").replace("    ", " "))
    with Catalogue(index / "other.sqlite") as catalogue:
        assert list(catalogue.list_items()) == []


@pytest.mark.parametrize(
    "change",
    [
        "path = x'2e2e'",
        "label = x'ff'",
        "sha256 = x'00'",
        "size_bytes = 'many'",
        "size_bytes = 5.5",
        "modified_ns = x''",
    ],
)
def test_values_of_another_type_are_damage(index: Path, change: str) -> None:
    write_sql(index, f"UPDATE items SET {change} WHERE id = 3")
    with Index(index) as opened, pytest.raises(IndexFolderError, match=r"damaged.*id 3 is no image"):
        list(opened.list_items())


def test_a_label_of_another_type_is_damage_for_an_evaluation(index: Path) -> None:
    write_sql(index, "UPDATE items SET label = x'ff' WHERE id = 3")
    with Index(index) as opened, pytest.raises(IndexFolderError, match="a label is no text"):
        opened.read_vectors()


def test_a_statement_that_takes_more_steps_than_its_file_can_is_cut_off(index: Path) -> None:
    with Index(index) as opened, pytest.raises(IndexFolderError, match=r"is damaged: .*: interrupted"):
        opened.catalogue.select(f"SELECT COUNT(*) FROM ({ENDLESS})")


def test_faiss_reads_no_byte_before_the_checksum_is_right(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def read(path: Path, *, mapped: bool = False) -> object:
        seen.append(path)
        return read_faiss(path, mapped=mapped)

    monkeypatch.setattr(index_module, "read_faiss", read)
    path = find_file(index, "index.faiss")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFolderError, match=r"its index\.faiss is not as it was written"):
        Index(index)
    assert not seen
    seal(name_generation(index, 1))
    Index(index).close()
    assert seen == [path]


def test_a_rebuild_lets_faiss_read_nothing(index: Path) -> None:
    find_file(index, "index.faiss").write_bytes(b"IxMp" + bytes(range(200)))
    seal(name_generation(index, 1))
    with pytest.raises(IndexFolderError, match=r"the index\.faiss of the index .* cannot be read"):
        Index(index)
    rebuild_index(index)
    assert verify_index(index).problems == ()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checked, "NOTES", tmp_path / "notes")
    monkeypatch.setattr(checked, "NOTED_BYTES", 1)
    return tmp_path / "notes"


def test_a_large_file_is_hashed_once_until_it_changes(
    index: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(checked, "hash_file", lambda path: (hashed.append(path), hash_file(path))[1])
    path = find_file(index, "index.faiss")
    for _ in range(2):
        Index(index).close()
    assert hashed == [path]
    content, known = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(known.st_atime_ns, known.st_mtime_ns))  # size and time of change are as before
    with pytest.raises(IndexFolderError, match=r"its index\.faiss is not as it was written"):
        Index(index)
    assert len(list(notes.iterdir())) == 1


def test_what_was_written_here_is_not_hashed_again(index: Path, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild_index(index)
    monkeypatch.setattr(checked, "hash_file", lambda _: pytest.fail("hashed"))
    Index(index).close()


def test_without_a_place_for_notes_files_are_hashed_each_time(index: Path, notes: Path) -> None:
    notes.write_text("a file")
    Index(index).close()
    rebuild_index(index)
    Index(index).close()


@pytest.mark.parametrize(
    ("first", "second"), [("index.faiss", "vectors-00000001.npy"), ("catalogue.sqlite", "model.onnx")]
)
def test_files_that_were_swapped_are_refused(index: Path, first: str, second: str) -> None:
    here, there = find_file(index, first), find_file(index, second)
    content = here.read_bytes()
    here.write_bytes(there.read_bytes())
    there.write_bytes(content)
    seal(name_generation(index, 1))
    with pytest.raises(IndexFolderError):
        Index(index)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize(
    "name", ["CURRENT", "manifest.json", "index.faiss", "catalogue.sqlite", "vectors-00000001.npy"]
)
def test_what_never_ends_is_not_read(index: Path, name: str, make: Callable[[Path], object]) -> None:
    path = index / name if name == "CURRENT" else find_file(index, name)
    manifest = find_file(index, "manifest.json")
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"sizes": {}})
    )  # which an earlier version left out
    path.unlink()
    make(path)
    for use in (Index, count_outside) if name == "catalogue.sqlite" else (Index,):
        with pytest.raises(IndexFolderError) as refused:
            use(index)
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("make", SPECIAL.values(), ids=SPECIAL)
def test_a_model_that_never_ends_is_not_read(index: Path, make: Callable[[Path], object]) -> None:
    find_file(index, "model.onnx").unlink()
    make(find_file(index, "model.onnx"))
    with pytest.raises((IndexFolderError, ModelError)):
        open_model(index)


def test_a_manifest_of_gigabytes_is_not_read(index: Path) -> None:
    with find_file(index, "manifest.json").open("r+b") as stream:
        stream.truncate(2**40)  # a hole, which takes no space
    with pytest.raises(IndexFolderError, match=r"its manifest\.json cannot be read"):
        Index(index)


def test_a_journal_of_gigabytes_is_read_to_its_first_damage(index: Path, small_model: EmbeddingSession) -> None:
    path = index / "pending.vectors"
    with open_journal(path, small_model.sha256, 64) as journal:
        journal.keep(["0" * 64], np.ones((1, 64), dtype=np.float32))
    whole = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(2**40)
    with open_journal(path, small_model.sha256, 64) as journal:
        assert len(journal) == 1
    assert path.stat().st_size == whole


@pytest.mark.parametrize(
    "change", [{"dimension": 2**62}, {"dimension": 0}, {"factory": "IVF4000000000,Flat"}, {"factory": "IDMap,\x1b[2J"}]
)
def test_a_manifest_with_enormous_numbers_is_refused_before_they_are_made(
    index: Path, change: dict[str, object]
) -> None:
    manifest = find_file(index, "manifest.json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(InputError) as refused:
        rebuild_index(index)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("use", ["compact", "rebuild", "merge"])
def test_a_catalogue_that_lost_images_is_not_made_the_truth(index: Path, use: str) -> None:
    write_sql(index, "DELETE FROM items WHERE id = 3")
    with pytest.raises(IndexFolderError, match=r"has 5 images, its manifest\.json says 6"):
        USES[use](index)
