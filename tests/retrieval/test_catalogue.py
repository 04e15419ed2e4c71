"""The catalogue by itself: what is read of it, what a draft changes, and what a broken one says."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest

from indistill.errors import IndexFolderError, InputError
from indistill.retrieval.store.catalogue import (
    LARGEST_ID,
    MAX_VALUE_BYTES,
    SCHEMA,
    VALUES_PER_QUERY,
    Catalogue,
    CatalogueItem,
    NewItem,
    edit_catalogue,
    is_text,
)


def make_item(path: str, label: str | None = None, sha256: str = "00") -> NewItem:
    return NewItem(path, label, sha256, size_bytes=3, modified_ns=4)


ITEMS = [make_item("a.png", "cat", "aa"), make_item("b.png", None, "bb"), make_item("c.png", "dog", "aa")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Returns a catalogue of the three items, whose ids are 1 to 3."""
    path = tmp_path / "catalogue.sqlite"
    with edit_catalogue(path) as draft:
        assert draft.add(ITEMS) == [1, 2, 3]
        assert draft.count() == 3
    return path


def list_all(path: Path) -> list[CatalogueItem]:
    with Catalogue(path) as catalogue:
        return list(catalogue.list_items())


def test_items_are_found_by_id_path_and_content(path: Path) -> None:
    first, second, third = list_all(path)
    assert first == CatalogueItem(1, "a.png", "cat", "aa", 3, 4)
    with Catalogue(path) as catalogue:
        assert catalogue.find_items([3, 1, 9, 0, -1, LARGEST_ID, LARGEST_ID + 1]) == {1: first, 3: third}
        assert catalogue.find_paths(["b.png", "none.png", "\udcff.png"]) == {"b.png": second}
        assert catalogue.find_content("aa") == 1  # the first of two
        assert catalogue.find_content("bb") == 2
        assert catalogue.find_content("cc") is None
        assert catalogue.list_labels() == [(1, "cat"), (2, None), (3, "dog")]
        assert catalogue.select("SELECT path FROM items WHERE label = ?", ["dog"]) == [("c.png",)]


def test_the_largest_id_is_found(path: Path) -> None:
    with edit_catalogue(path) as draft:
        draft.start_ids(LARGEST_ID)
        assert draft.add([make_item("last.png")]) == [LARGEST_ID]
    with Catalogue(path) as catalogue:
        assert catalogue.find_items([LARGEST_ID])[LARGEST_ID].path == "last.png"


def test_more_values_than_one_statement_takes_are_looked_up_in_parts(tmp_path: Path) -> None:
    count = 2 * VALUES_PER_QUERY + 1
    with edit_catalogue(tmp_path / "c.sqlite") as draft:
        draft.add([make_item(f"{number}.png") for number in range(count)])
    with Catalogue(tmp_path / "c.sqlite") as catalogue:
        statements: list[str] = []
        catalogue._connection.set_trace_callback(statements.append)
        assert list(catalogue.find_items(range(1, count + 1))) == list(range(1, count + 1))
        assert len(statements) == 3  # SQLite of other builds takes 999 values at most
        assert len(catalogue.find_paths([f"{number}.png" for number in range(count)])) == count


def test_removed_ids_are_never_used_again(path: Path) -> None:
    with edit_catalogue(path) as draft:
        draft.remove([3, 2])
        assert draft.count() == 1
        assert draft.add([make_item("d.png")]) == [4]
    assert [item.id for item in list_all(path)] == [1, 4]


def test_ids_start_where_they_are_told_to(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with edit_catalogue(path) as draft:
        draft.start_ids(50)
        assert draft.add([make_item("a.png"), make_item("b.png")]) == [50, 51]
        draft.start_ids(70)
        draft.remove([50, 51])
        assert draft.add([make_item("c.png")]) == [70]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT * FROM sqlite_sequence").fetchall() == [("items", 70)]
    connection.close()


def test_items_may_change_all_they_have_and_swap_their_paths(path: Path) -> None:
    changed = [CatalogueItem(1, "b.png", "new", "dd", 30, 40), CatalogueItem(2, "a.png", None, "ee", 31, 41)]
    with edit_catalogue(path) as draft:
        draft.replace(changed)
    assert list_all(path)[:2] == changed
    assert list_all(path)[2].path == "c.png"


def test_a_change_that_fails_leaves_all_as_it_was(path: Path) -> None:
    before = list_all(path)

    def change() -> None:
        with edit_catalogue(path) as draft:
            draft.remove([1])
            draft.add([make_item("c.png")])  # there already

    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        change()
    assert list_all(path) == before


@pytest.mark.parametrize("item", [make_item("\udcff.png"), make_item("a.png", "\udcff")])
def test_what_is_not_utf8_is_refused_and_named_escaped(tmp_path: Path, item: NewItem) -> None:
    def add() -> None:
        with edit_catalogue(tmp_path / "c.sqlite") as draft:
            draft.add([item])

    with pytest.raises(InputError, match=r"^\\udcff(\.png)? is not valid UTF-8: no index can hold it$"):
        add()


def test_names_are_text_if_they_are_utf8() -> None:
    assert is_text("ü.png")
    assert not is_text("\udcff.png")


def test_vacuum_gives_back_the_space_of_what_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with edit_catalogue(path) as draft:
        ids = draft.add([make_item(f"{number:0200}.png") for number in range(2000)])
    with edit_catalogue(path) as draft:
        draft.remove(ids[1:])
    size = path.stat().st_size
    with edit_catalogue(path) as draft:
        draft.vacuum()
    assert path.stat().st_size < size / 10
    assert [item.id for item in list_all(path)] == [1]


def test_a_draft_leaves_no_journal_and_waits_for_no_disk(tmp_path: Path) -> None:
    with edit_catalogue(tmp_path / "c.sqlite") as draft:
        draft.add(ITEMS)
        assert [path.name for path in tmp_path.iterdir()] == ["c.sqlite"]
        assert draft._connection.execute("PRAGMA journal_mode").fetchall() == [("memory",)]
        assert draft._connection.execute("PRAGMA synchronous").fetchall() == [(0,)]
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        draft.count()


def test_a_catalogue_is_read_only_and_closed_at_the_end(path: Path) -> None:
    with Catalogue(path) as catalogue:
        with pytest.raises(IndexFolderError, match="readonly"):
            catalogue.select("DELETE FROM items")
        found: list[int | None] = []
        thread = Thread(target=lambda: found.append(catalogue.find_content("bb")))
        thread.start()
        thread.join()
        assert found == [2]  # by another thread
    with pytest.raises(IndexFolderError, match=r"the index is damaged: .*Cannot operate on a closed database"):
        catalogue.list_labels()


def test_a_catalogue_is_read_though_its_folder_takes_no_lock(path: Path) -> None:
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert len(list_all(path)) == 3
        writer.execute("ROLLBACK")
    writer.close()


def test_a_missing_catalogue_is_damage_and_one_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "c.sqlite"
    with pytest.raises(
        IndexFolderError, match=f"^the index is damaged: {re.escape(str(missing))} is missing; build it"
    ):
        Catalogue(missing)
    assert not missing.exists()
    with pytest.raises(
        IndexFolderError, match=f"^the index cannot be read: {re.escape(str(tmp_path))}: it is a folder, "
    ):
        Catalogue(tmp_path)


def test_a_file_that_is_no_catalogue_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"no database" * 100)
    words = f"^the index is damaged: {re.escape(str(path))}: file is not a database; build it again$"
    with pytest.raises(IndexFolderError, match=words):
        Catalogue(path)


def test_a_page_begins_behind_an_id(path: Path) -> None:
    with Catalogue(path) as catalogue:
        assert [item.id for item in catalogue.list_page(0, 2)] == [1, 2]
        assert [item.id for item in catalogue.list_page(2, 2)] == [3]
        assert catalogue.list_page(3, 2) == []


def run_sql(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


@pytest.mark.parametrize(
    "script", ["CREATE TABLE more (x)", "CREATE VIEW more AS SELECT 1", "DROP INDEX items_by_content"]
)
def test_a_catalogue_of_other_parts_is_neither_read_nor_changed(path: Path, script: str) -> None:
    run_sql(path, script)
    words = f"^the index is damaged: {re.escape(str(path))} holds something else than a catalogue \\(table items.*\\)"
    with pytest.raises(IndexFolderError, match=words):
        Catalogue(path)
    with pytest.raises(IndexFolderError, match=words), edit_catalogue(path):
        pass


def test_an_index_of_another_column_is_another_part(path: Path) -> None:
    run_sql(path, "DROP INDEX items_by_content; CREATE INDEX items_by_content ON items (label)")
    with pytest.raises(IndexFolderError, match=r"\(table items, index items_by_content\); build it again$"):
        Catalogue(path)


def test_a_catalogue_of_nothing_is_named_so(tmp_path: Path) -> None:
    run_sql(tmp_path / "c.sqlite", "PRAGMA user_version = 1")
    with pytest.raises(IndexFolderError, match=r"holds something else than a catalogue \(nothing\); build it again$"):
        Catalogue(tmp_path / "c.sqlite")


@pytest.mark.parametrize("comment", ["-- of an earlier version", ""])
def test_comments_and_spaces_of_a_schema_do_not_matter(tmp_path: Path, comment: str) -> None:
    run_sql(tmp_path / "c.sqlite", re.sub("--.*", comment, SCHEMA).replace("    ", " \n"))
    assert list_all(tmp_path / "c.sqlite") == []


@pytest.mark.parametrize(
    "change", ["label = x'ff'", "path = x'00'", "sha256 = x'00'", "size_bytes = 'x'", "modified_ns = 0.5"]
)
def test_a_row_of_other_types_is_damage_wherever_it_is_read(path: Path, change: str) -> None:
    run_sql(path, f"UPDATE items SET {change} WHERE id = 2")
    with Catalogue(path) as catalogue:
        for read in (
            lambda: catalogue.find_items([2]),
            lambda: list(catalogue.list_items()),
            lambda: catalogue.list_page(1, 1),
        ):
            with pytest.raises(
                IndexFolderError, match=r"^the index is damaged: .*: what it says of id 2 is no image; build"
            ):
                read()
        assert list(catalogue.find_items([1, 3])) == [1, 3]
        if change.startswith("label"):
            with pytest.raises(
                IndexFolderError, match=r"^the index is damaged: .*: a label is no text; build it again$"
            ):
                catalogue.list_labels()


def test_statements_without_end_are_cut_off_and_the_next_ones_run(path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    bounded = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500000) SELECT COUNT(*) FROM n"
    with Catalogue(path) as catalogue:
        with pytest.raises(IndexFolderError, match=r"^the index is damaged: .*: interrupted; build it again$"):
            catalogue.select(endless)
        for _ in range(3):  # of half the steps that one may take
            assert catalogue.select(bounded) == [(500_000,)]


def test_a_statement_may_take_steps_for_each_byte_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEPS_COUNTED", 100), ("LEAST_STEPS", 0)):
        monkeypatch.setattr(f"indistill.retrieval.store.catalogue.{name}", value)
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT COUNT(*) FROM n"
    with Catalogue(path) as catalogue:
        assert catalogue.select(counting.format(1000)) == [(1000,)]
        with pytest.raises(IndexFolderError, match="interrupted"):
            catalogue.select(counting.format(path.stat().st_size))


def test_a_value_larger_than_any_of_ours_is_damage(path: Path) -> None:
    with Catalogue(path) as catalogue:
        assert catalogue.select(f"SELECT length(zeroblob({MAX_VALUE_BYTES}))") == [(MAX_VALUE_BYTES,)]
        with pytest.raises(IndexFolderError, match=r"^the index is damaged: .*too big; build it again$"):
            catalogue.select(f"SELECT hex(zeroblob({MAX_VALUE_BYTES}))")
        assert catalogue.select("PRAGMA trusted_schema") == [(0,)]
        assert catalogue.select("PRAGMA cell_size_check") == [(1,)]
