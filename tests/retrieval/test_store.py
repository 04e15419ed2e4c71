"""An index folder on full disks, without rights, in races with other changes, and with strangers in it."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from indistill.data.sets import open_folder
from indistill.errors import ExistsError, IndexFolderError, InputError
from indistill.export.session import EmbeddingSession
from indistill.files.hashing import hash_file
from indistill.retrieval import index as index_module
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.store import generations as store
from indistill.retrieval.store.build import BuildOptions, IndexType, build_index
from indistill.retrieval.store.catalogue import Catalogue
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import CATALOGUE, FAISS, GENERATIONS, MANIFEST, PENDING, read_manifest
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, merge_indexes, rebuild_index, verify_index
from tests.cli.calls import make_environment
from tests.retrieval.conftest import write_gallery
from tests.retrieval.test_living_index import die_at

NOBODY = 65_534
WRITE_UNDER_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from indistill.retrieval.store.build import write_faiss
from indistill.retrieval.store.segments import write_segment
from indistill.retrieval.index_types.types import make_faiss
vectors, ids = np.eye(64, dtype=np.float32).repeat(9, axis=0), np.arange(576)
write = {
    "segment": lambda path: write_segment(path, ids, vectors),
    "faiss": lambda path: write_faiss(make_faiss("Flat", vectors, ids), path),
}[sys.argv[1]]
write(Path(sys.argv[2]))
size = Path(sys.argv[2]).stat().st_size
for missing in (1, 100, 4096, size // 2, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, resource.RLIM_INFINITY))
    try:
        write(Path(sys.argv[2]))
    except OSError as error:
        print(error.strerror)
    else:
        print(f"no error, and {size - Path(sys.argv[2]).stat().st_size} bytes are missing")
"""


@pytest.fixture
def gallery(tmp_path: Path, pictures: list[bytes]) -> Path:
    return write_gallery(tmp_path / "gallery", pictures[:10])


@pytest.fixture
def index(tmp_path: Path, gallery: Path, small_model: EmbeddingSession) -> Path:
    build_index(open_folder(gallery, "g"), small_model, tmp_path / "index")
    return tmp_path / "index"


@contextmanager
def mount_small_disk(size: int) -> Iterator[Path]:
    """Yields a file system of some bytes."""
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("a file system can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@contextmanager
def without_rights() -> Iterator[None]:
    """Takes root's rights from this process; nobody else has them."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("what", ["segment", "faiss"])
def test_a_file_that_is_not_written_whole_is_an_error(tmp_path: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE_UNDER_LIMIT, what, tmp_path / "file.npy"],
        capture_output=True,
        text=True,
        env=make_environment(),
        check=True,
    )
    assert done.stdout.splitlines() == ["File too large"] * 5


def test_a_disk_that_is_full_at_any_byte_leaves_no_broken_index(gallery: Path, small_model: EmbeddingSession) -> None:
    refused = 0
    for pages in range(10, 60):
        with mount_small_disk(4096 * pages) as disk:
            try:
                build_index(open_folder(gallery, "g"), small_model, disk / "index")
            except InputError as error:
                assert "cannot be written: " in str(error)  # noqa: PT017 - it is not always raised
                assert not (disk / "index" / "CURRENT").exists()
                refused += 1
            else:
                assert verify_index(disk / "index").problems == ()
    assert 0 < refused < 50


def test_a_model_that_changes_meanwhile_is_not_put_into_an_index(
    tmp_path: Path, gallery: Path, small_model: EmbeddingSession
) -> None:
    shutil.copyfile(small_model.path, tmp_path / "model.onnx")
    session = EmbeddingSession(tmp_path / "model.onnx")
    with (tmp_path / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(InputError, match="was changed meanwhile"):
        build_index(open_folder(gallery, "g"), session, tmp_path / "index")
    with pytest.raises(IndexFolderError, match="is not complete"):
        read_manifest(tmp_path / "index")


def test_a_broken_catalogue_is_damage_and_no_bug(index: Path, gallery: Path) -> None:
    generation = index / GENERATIONS / "00000001"
    content = bytearray((generation / CATALOGUE).read_bytes())
    content[4096:] = b"\xff" * len(content[4096:])
    (generation / CATALOGUE).write_bytes(content)
    manifest = json.loads((generation / MANIFEST).read_text())
    manifest["files"][CATALOGUE] = hash_file(generation / CATALOGUE)
    (generation / MANIFEST).write_text(json.dumps(manifest))
    for act in (
        lambda: remove_items(index, Selection(ids=(1,))),
        lambda: compact_index(index),
        lambda: sync_folder(index),
        lambda: merge_indexes([index, index], index.with_name("both")),
    ):
        with pytest.raises(IndexFolderError, match=r"is damaged: .*catalogue\.sqlite"):
            act()
    (problem,) = verify_index(index).problems
    assert "is damaged" in problem
    words = r"is damaged: its catalogue\.sqlite: file is not a database"
    with pytest.raises(IndexFolderError, match=words), store.draft_generation(index):
        raise sqlite3.DatabaseError("file is not a database")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CURRENT", "index cannot be read: Permission denied"),
        (MANIFEST, "index cannot be read: Permission denied"),
        (CATALOGUE, r"catalogue\.sqlite.*: Permission denied"),
        (FAISS, r"index\.faiss cannot be read"),
        ("vectors-00000001.npy", r"vectors-00000001\.npy cannot be read"),
    ],
)
def test_what_may_not_be_read_is_told_from_damage(
    small_model: EmbeddingSession, pictures: list[bytes], name: str, words: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - unlike pytest's own, for all
        write_gallery(Path(folder) / "gallery", pictures[:1])
        index = Path(folder) / "index"
        build_index(open_folder(Path(folder) / "gallery", "g"), small_model, index)
        (path,) = index.rglob(name)
        path.chmod(0)
        with without_rights():
            with pytest.raises(IndexFolderError, match=words):
                Index(index)
            if name in ("CURRENT", MANIFEST):
                with pytest.raises(IndexFolderError, match=words):
                    verify_index(index)
            else:
                assert verify_index(index).problems == (f"{name} cannot be read: Permission denied",)


def test_a_check_that_a_change_overtakes_looks_at_the_new_generation(index: Path) -> None:
    compacted: list[int] = []

    def compact(_: int) -> None:
        if not compacted:
            compacted.append(compact_index(index).generation)

    assert verify_index(index, compact).problems == ()
    assert compacted == [2]


def test_readers_follow_a_generation_that_goes_away(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.read_current
    for read in (read_manifest, Index, open_model):
        before = read_manifest(index).generation

        def overtake(folder: Path) -> int | None:
            found = original(folder)
            monkeypatch.setattr(store, "read_current", original)
            compact_index(index)
            return found

        monkeypatch.setattr(store, "read_current", overtake)
        read(index)
        assert read_manifest(index).generation == before + 1


def test_a_merge_that_was_cut_off_is_completed_by_its_repeat(
    index: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    build_index(open_folder(write_gallery(tmp_path / "other", pictures[30:34]), "o"), small_model, tmp_path / "second")
    both, finished = tmp_path / "both", False
    for death in range(0, 200, 7):
        finished = die_at(death, lambda: merge_indexes([index, tmp_path / "second"], both))
        if not (both / "CURRENT").exists():
            merge_indexes([index, tmp_path / "second"], both)
        assert verify_index(both).problems == ()
        assert read_manifest(both).items == 14
        with pytest.raises(ExistsError, match="both exists; choose another --out"):
            merge_indexes([index, tmp_path / "second"], both)
        shutil.rmtree(both)
        if finished:
            break
    assert finished


def test_a_folder_that_is_no_index_is_left_as_it_is(tmp_path: Path, gallery: Path) -> None:
    folder = tmp_path / "photos"
    changes: list[Callable[[Path], object]] = [
        lambda folder: add_images(folder, [str(gallery)]),
        sync_folder,
        lambda folder: remove_items(folder, Selection(ids=(1,))),
        rebuild_index,
        compact_index,
    ]
    for change in changes:
        with pytest.raises(IndexFolderError, match="is not an index"):
            change(folder)
        assert not folder.exists()
    folder.mkdir()
    for change in changes:
        with pytest.raises(IndexFolderError, match="is not an index"):
            change(folder)
        assert list(folder.iterdir()) == []


def test_a_removal_between_a_cut_off_addition_and_its_repeat_loses_no_embeddings(
    index: Path, gallery: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indistill.retrieval.embed.BATCH_SIZE", 4)
    monkeypatch.setattr("indistill.retrieval.embed.AHEAD", 4)
    for number in range(20, 32):
        (gallery / "cat" / f"{number}.png").write_bytes(pictures[number])

    class Interrupt:
        done = 0

        def __init__(self, _: int) -> None: ...
        def __enter__(self) -> "Interrupt":
            return self

        def __exit__(self, *_: object) -> None: ...
        def __call__(self, count: int) -> None:
            self.done += count
            if self.done == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_images(index, [str(gallery)], show=Interrupt)
    remove_items(index, Selection(ids=(3,)))
    rebuild_index(index)
    compact_index(index)
    embedded: list[int] = []
    original = EmbeddingSession.embed_pixels
    monkeypatch.setattr(
        EmbeddingSession, "embed_pixels", lambda self, pixels: embedded.append(len(pixels)) or original(self, pixels)
    )
    assert add_images(index, [str(gallery)]).added == 13
    assert sum(embedded) == 5  # four of the twelve, and the one that was removed
    assert not (index / PENDING).exists()


def test_strangers_among_the_generations_stay_and_hinder_no_change(index: Path) -> None:
    strangers = [index / GENERATIONS / name for name in (".DS_Store", "notes.txt", "7", ".Spotlight")]
    for path in strangers[:3]:
        path.write_bytes(b"mine")
    strangers[3].mkdir()
    (index / GENERATIONS / ".00000002").mkdir()
    for number in (1, 2, 3):
        remove_items(index, Selection(ids=(number,)))
    assert all(path.exists() for path in strangers)
    assert sorted(path.name for path in (index / GENERATIONS).glob("0*")) == ["00000003", "00000004"]
    assert verify_index(index).problems == ()


def test_a_reason_that_the_system_does_not_give_is_not_none(index: Path) -> None:
    words = "cannot be written: OSError: 5 requested and 3 written"
    with pytest.raises(InputError, match=words), store.draft_generation(index):
        raise OSError("5 requested and 3 written")


@pytest.mark.parametrize("name", [FAISS, CATALOGUE, "vectors-00000001.npy"])
@pytest.mark.parametrize("factory", ["IDMap,Flat", "IDMap2,Flat", "IVF2,Flat"])
def test_a_file_of_another_size_is_not_mapped(
    tmp_path: Path, gallery: Path, small_model: EmbeddingSession, name: str, factory: str
) -> None:
    index = tmp_path / "index"
    build_index(open_folder(gallery, "g"), small_model, index, BuildOptions(lambda _: IndexType(factory)))
    path = index / GENERATIONS / "00000001" / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(IndexFolderError, match=f"its {name} is not as it was written"):
            Index(index)


def test_an_index_without_recorded_sizes_is_opened_and_changed(index: Path) -> None:
    path = index / GENERATIONS / "00000001" / MANIFEST
    content = json.loads(path.read_text())
    assert content.pop("sizes")[FAISS] == (path.parent / FAISS).stat().st_size
    path.write_text(json.dumps(content))
    Index(index).close()
    remove_items(index, Selection(ids=(1,)))
    assert set(read_manifest(index).sizes) == set(read_manifest(index).files)
    assert verify_index(index).problems == ()


def test_only_the_queries_with_a_tie_at_the_last_place_are_searched_again(
    index: Path, gallery: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        (gallery / "dog" / f"copy{number}.png").write_bytes(pictures[4])
    sync_folder(index)
    with Index(index) as opened:
        ids, vectors, _ = opened.read_vectors()
        queries = vectors[:10]
        order = [np.lexsort((ids, -(vectors @ query).round(5)))[:3] for query in queries]
        searched: list[int] = []
        original = index_module.search_faiss
        monkeypatch.setattr(
            index_module,
            "search_faiss",
            lambda faiss, queries, *rest: searched.append(len(queries)) or original(faiss, queries, *rest),
        )
        scores, found = opened.search_vectors(queries, 3)
    assert found.tolist() == [ids[row].tolist() for row in order]
    assert searched[0] == 10
    assert 1 <= max(searched[1:]) < 5
    assert (np.diff(scores, axis=1) <= 0).all()


def test_names_that_are_not_utf8_are_skipped_where_an_index_would_have_to_hold_them(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    bad = os.fsdecode(b"\xff")
    (gallery / "cat" / f"{bad}.png").write_bytes(pictures[20])
    write_gallery(gallery / bad, pictures[21:22])
    expected = {f"cat/{bad}.png", f"{bad}/cat/00.png"}
    escaped = {name.replace(bad, "\\udcff") for name in expected}
    reason = "its name is not valid UTF-8"
    for changes in (sync_folder(index), add_images(index, [str(gallery)])):
        assert {image.name for image in changes.skipped} == escaped
        assert {image.reason for image in changes.skipped} == {reason}
        assert changes.unchanged == 10
    elsewhere = write_gallery(tmp_path / bad / "more", pictures[22:24])
    write_gallery(tmp_path / "fine", pictures[24:25])
    changes = add_images(index, [str(elsewhere), str(tmp_path / "fine")])
    assert changes.added == 1
    assert [image.reason for image in changes.skipped] == [reason] * 2
    lines = (index / GENERATIONS / "00000002" / "skipped.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["reason"] for line in lines] == [reason] * 2
    _, skipped = build_index(open_folder(gallery, "g"), small_model, tmp_path / "new")
    assert {image.name for image in skipped} == escaped
    build_index(open_folder(elsewhere, "g"), small_model, tmp_path / "of-elsewhere")
    assert sync_folder(tmp_path / "of-elsewhere").unchanged == 2
    with pytest.raises(InputError, match="its path is not valid UTF-8"):
        build_index(open_folder(gallery, "g"), small_model, tmp_path / bad / "index")
    with pytest.raises(InputError, match="its path is not valid UTF-8"):
        verify_index(index.rename(tmp_path / bad / "index"))


def test_a_label_that_is_not_utf8_is_refused(index: Path, gallery: Path) -> None:
    with pytest.raises(InputError, match=r"cat.udcff is not valid UTF-8: no index can hold it"):
        add_images(index, [str(gallery / "cat")], label="cat\udcff")
    assert verify_index(index).problems == ()


def test_numbers_that_are_no_ids_are_of_no_image(index: Path) -> None:
    with closing(Catalogue(index / GENERATIONS / "00000001" / CATALOGUE)) as catalogue:
        assert catalogue.find_items([-(2**70), 0, 2**63, 2**70]) == {}
