"""An index that is damaged, made again, made small, and put together with others."""

from pathlib import Path

import numpy as np
import pytest

from indistill.data.sets import open_folder
from indistill.errors import ExistsError, IndexFolderError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Index
from indistill.retrieval.store.build import BuildOptions, build_index
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import FAISS, MANIFEST, name_generation, read_manifest
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, merge_indexes, rebuild_index, verify_index
from tests.retrieval.conftest import write_gallery

FILES = (
    "index.faiss",
    "catalogue.sqlite",
    "model.onnx",
    "skipped.jsonl",
    "vectors-00000001.npy",
    "vectors-00000002.npy",
)


@pytest.fixture
def gallery(tmp_path: Path, pictures: list[bytes]) -> Path:
    folder = write_gallery(tmp_path / "gallery", pictures[:10])
    (folder / "cat" / "bad.png").write_bytes(b"")
    return folder


@pytest.fixture
def index(tmp_path: Path, gallery: Path, pictures: list[bytes], small_model: EmbeddingSession) -> Path:
    """Returns an index with two segments and a removed image."""
    build_index(open_folder(gallery, "g"), small_model, tmp_path / "index")
    (gallery / "dog" / "00.png").write_bytes(pictures[20])
    (gallery / "cat" / "00.png").unlink()
    sync_folder(tmp_path / "index")
    return tmp_path / "index"


def find_file(index: Path, name: str) -> Path:
    return name_generation(index, read_manifest(index).generation) / name


def search_all(index: Path) -> list[list[tuple[int, str, float]]]:
    with Index(index) as opened:
        queries = opened.read_vectors()[1]
        return [[(hit.id, hit.path, round(hit.score, 5)) for hit in hits] for hits in opened.search(queries, 5)]


def flip_byte(path: Path, where: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1
    path.unlink()  # generations share files
    path.write_bytes(content)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(index: Path, name: str, where: float) -> None:
    assert verify_index(index).problems == ()
    flip_byte(find_file(index, name), where)
    assert verify_index(index).problems == (f"{name} is not as it was written",)


def test_a_missing_and_a_foreign_file_are_found(index: Path) -> None:
    find_file(index, "skipped.jsonl").unlink()
    find_file(index, "notes.txt").write_text("mine")
    assert verify_index(index).problems == ("skipped.jsonl is missing", "notes.txt does not belong here")


def test_files_that_are_whole_but_do_not_fit_are_found(index: Path) -> None:
    import json
    import sqlite3
    from contextlib import closing

    from indistill.files.hashing import hash_file

    catalogue = find_file(index, "catalogue.sqlite")
    with closing(sqlite3.connect(catalogue)) as connection, connection:
        connection.execute("UPDATE items SET id = 500 WHERE id = 3")
    manifest = find_file(index, MANIFEST)
    content = json.loads(manifest.read_text())
    content["files"]["catalogue.sqlite"] = hash_file(catalogue)
    manifest.write_text(json.dumps(content))
    (problem,) = verify_index(index).problems
    assert "id 500 has no stored embedding" in problem


@pytest.mark.parametrize("damage", ["missing", "flipped", "none"])
def test_the_faiss_index_is_made_again_from_the_embeddings(index: Path, damage: str) -> None:
    expected = search_all(index)
    if damage == "missing":
        find_file(index, FAISS).unlink()
    elif damage == "flipped":
        flip_byte(find_file(index, FAISS), 0.5)
    rebuild_index(index)
    assert verify_index(index).problems == ()
    assert search_all(index) == expected


@pytest.mark.parametrize("name", ["catalogue.sqlite", "vectors-00000001.npy", "model.onnx"])
def test_what_cannot_be_made_again_is_said(index: Path, name: str) -> None:
    flip_byte(find_file(index, name), 0.5)
    before = read_manifest(index)
    with pytest.raises(IndexFolderError, match=f"its {name} is not as it was written"):
        rebuild_index(index)
    with pytest.raises(IndexFolderError, match=f"its {name} is not as it was written"):
        compact_index(index)
    assert read_manifest(index) == before


def test_a_compact_index_answers_the_same_from_fewer_bytes(index: Path, gallery: Path) -> None:
    remove_items(index, Selection(ids=(2, 3)))
    expected, size = search_all(index), sum(path.stat().st_size for path in index.rglob("*"))
    manifest = compact_index(index)
    assert manifest.segments == (f"vectors-{manifest.generation:08d}.npy",)
    assert len(np.load(find_file(index, manifest.segments[0]))) == manifest.items == 8
    assert [path.name for path in (index / "generations").iterdir()] == [f"{manifest.generation:08d}"]
    assert sum(path.stat().st_size for path in index.rglob("*")) < size
    assert verify_index(index).problems == ()
    assert search_all(index) == expected
    (gallery / "cat" / "02.png").touch()
    add_images(index, [str(gallery)])
    assert verify_index(index).problems == ()


def test_merged_indexes_answer_as_one_build_of_all(
    index: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    other = write_gallery(tmp_path / "other", pictures[30:36])
    build_index(open_folder(other, "o"), small_model, tmp_path / "second")
    merge_indexes([index, tmp_path / "second"], tmp_path / "both")
    assert verify_index(tmp_path / "both").problems == ()
    add_images(index, [str(other)])
    assert search_all(tmp_path / "both") == search_all(index)


def test_indexes_that_cannot_be_merged_are_refused(
    index: Path, tmp_path: Path, gallery: Path, small_model: EmbeddingSession
) -> None:
    with pytest.raises(InputError, match=r"cat/02\.png is in .* and in .*: remove it from one"):
        merge_indexes([index, index], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    with pytest.raises(ExistsError, match="exists"):
        merge_indexes([index, index], gallery)


@pytest.mark.parametrize("name", ["index.faiss", "catalogue.sqlite"])
def test_damage_is_not_sealed_by_a_change(index: Path, gallery: Path, pictures: list[bytes], name: str) -> None:
    flip_byte(find_file(index, name), 0.99)
    (gallery / "cat" / "new.png").write_bytes(pictures[25])
    for change in (lambda: sync_folder(index), lambda: remove_items(index, Selection(ids=(2,)))):
        with pytest.raises(IndexFolderError, match="is damaged"):
            change()
    assert verify_index(index).problems == (f"{name} is not as it was written",)


def test_a_damaged_embedding_is_not_merged(index: Path, tmp_path: Path) -> None:
    flip_byte(find_file(index, "vectors-00000001.npy"), 0.9)
    with pytest.raises(IndexFolderError, match=r"its vectors-00000001\.npy is not as it was written"):
        merge_indexes([index, index], tmp_path / "both")
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere"])
def test_a_build_replaces_an_index_whose_current_is_damaged(
    index: Path, gallery: Path, small_model: EmbeddingSession, content: bytes
) -> None:
    (index / "CURRENT").write_bytes(content)
    with pytest.raises(IndexFolderError, match="its CURRENT cannot be read"):
        read_manifest(index)
    build_index(open_folder(gallery, "g"), small_model, index, BuildOptions(overwrite=True))
    assert verify_index(index).problems == ()
    assert read_manifest(index).generation == 3


@pytest.mark.parametrize("name", ["pending.vectors", "CURRENT.partial", "CURRENT", "generations"])
def test_an_index_with_a_link_in_place_of_its_own_file_is_not_changed(index: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    if (index / name).exists():
        (index / name).rename(target)
    else:
        target.write_bytes(b"mine")
    (index / name).symlink_to(target)
    before = target.read_bytes() if target.is_file() else sorted(target.rglob("*"))
    with pytest.raises(IndexFolderError, match=f"has a link in place of its {name}"):
        remove_items(index, Selection(ids=(2,)))
    assert before == (target.read_bytes() if target.is_file() else sorted(target.rglob("*")))


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../../rc": "0"}},
        {"files": []},
        {"segments": ["../../vectors-00000001.npy"]},
        {"segments": [5]},
        {"root": 5},
    ],
)
def test_a_manifest_that_names_other_files_is_damaged(index: Path, change: dict[str, object]) -> None:
    import json

    manifest = find_file(index, MANIFEST)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(IndexFolderError, match=r"its manifest\.json cannot be read"):
        rebuild_index(index)
