"""Whatever names the images of an index: one image has one path, and `sync` follows what the index was built from."""

import json
import os
import tarfile
from pathlib import Path
from time import process_time

import pytest

from indistill.data.sets import open_files, open_folder
from indistill.data.specs import locate_data, open_images
from indistill.errors import DataError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Index
from indistill.retrieval.store.build import BuildOptions, build_index
from indistill.retrieval.store.catalogue import Catalogue
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import read_manifest
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.sources import find_sources
from indistill.retrieval.store.upkeep import merge_indexes, verify_index
from tests.retrieval.conftest import write_gallery


@pytest.fixture
def gallery(tmp_path: Path, pictures: list[bytes]) -> Path:
    return write_gallery(tmp_path / "gallery", pictures[:6])


@pytest.fixture
def index(tmp_path: Path, gallery: Path, small_model: EmbeddingSession) -> Path:
    return build(str(gallery), small_model, tmp_path / "index")


def build(spec: str, model: EmbeddingSession, out: Path) -> Path:
    build_index(open_images(spec), model, out, BuildOptions(source=locate_data(spec)))
    return out


def list_labels(folder: Path) -> dict[str, str | None]:
    """Returns the label by path, of an index that must be whole."""
    assert verify_index(folder).problems == ()
    with Index(folder) as index:
        return {item.path: item.label for item in index.catalogue.list_items()}


def write_csv(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("path,label\n" + "".join(f"{name},{label}\n" for name, label in rows.items()), encoding="utf-8")
    return path


def write_tar(path: Path, pictures: list[bytes], folder: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(pictures):
            (folder / "member").write_bytes(picture)
            tar.add(folder / "member", f"{number:02d}.png")
    (folder / "member").unlink()
    return path


def test_a_label_that_changed_is_counted(index: Path, gallery: Path) -> None:
    (gallery / "cat" / "00.png").rename(gallery / "dog" / "00.png")
    changes = sync_folder(index)
    assert (changes.moved, changes.relabelled, changes.unchanged) == (1, 1, 5)
    changes = add_images(index, [str(gallery / "cat")], label="lion")
    assert (changes.moved, changes.relabelled, changes.unchanged) == (0, 2, 0)
    (gallery / "cat" / "02.png").touch()
    changes = sync_folder(index)  # one that is read again, and one that is not
    assert (changes.moved, changes.relabelled, changes.unchanged) == (0, 2, 4)


def test_sync_gives_its_images_their_own_labels_again_and_others_keep_what_they_were_given(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    other = write_gallery(tmp_path / "other", pictures[10:12])
    add_images(index, [str(gallery / "cat" / "00.png"), str(other)], label="lion")
    assert sync_folder(index).relabelled == 1
    labels = list_labels(index)
    assert labels["cat/00.png"] == "cat"
    assert labels[str(other / "cat" / "00.png")] == "lion"


def test_an_index_of_a_manifest_follows_the_manifest(
    gallery: Path, tmp_path: Path, small_model: EmbeddingSession
) -> None:
    rows = {"gallery/cat/00.png": "x", "gallery/cat/02.png": "x", "gallery/dog/01.png": "y"}
    manifest = write_csv(tmp_path / "m.csv", rows)
    index = build(str(manifest), small_model, tmp_path / "index")
    assert sync_folder(index).unchanged == 3
    rows = {"gallery/cat/00.png": "x", "gallery/cat/02.png": "z", "gallery/dog/03.png": "y"}
    write_csv(manifest, rows)
    changes = sync_folder(index)
    assert (changes.added, changes.removed, changes.relabelled, changes.unchanged) == (1, 1, 1, 1)
    assert list_labels(index) == rows
    write_csv(manifest, {"gallery/cat/00.png": "x"})
    assert sync_folder(index, str(manifest)).removed == 2
    manifest.unlink()
    with pytest.raises(InputError, match=r"m\.csv is not there: mount it; if it has moved"):
        sync_folder(index)
    assert sync_folder(index, str(gallery)).added == 5


def test_what_a_manifest_drops_goes_wherever_the_others_lie(
    gallery: Path, tmp_path: Path, small_model: EmbeddingSession
) -> None:
    (tmp_path / "lists").mkdir()
    rows = dict.fromkeys(("../gallery/cat/00.png", str(gallery / "dog/01.png"), str(gallery / "dog/03.png")), "x")
    manifest = write_csv(tmp_path / "lists" / "m.csv", rows)
    index = build(str(manifest), small_model, tmp_path / "index")
    assert read_manifest(index).root == str(gallery)
    assert set(list_labels(index)) == {"cat/00.png", "dog/01.png", "dog/03.png"}
    write_csv(manifest, {"../gallery/dog/01.png": "x"})  # whose folder alone is a deeper one
    assert sync_folder(index).removed == 2
    assert set(list_labels(index)) == {"dog/01.png"}


def test_a_manifest_beside_a_folders_index_changes_only_what_lies_by_it(
    index: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    other = write_gallery(tmp_path / "other", pictures[10:14])
    add_images(index, [str(other)])
    manifest = write_csv(other / "m.csv", {"cat/00.png": "lion", "dog/01.png": "wolf"})
    changes = sync_folder(index, str(manifest))
    assert (changes.removed, changes.relabelled) == (2, 2)
    assert len(list_labels(index)) == 8


def test_an_index_of_shards_follows_them(tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession) -> None:
    (tmp_path / "shards").mkdir()
    for number in range(3):
        write_tar(tmp_path / "shards" / f"{number}.tar", pictures[3 * number : 3 * number + 3], tmp_path)
    index = build(str(tmp_path / "shards" / "{0..1}.tar"), small_model, tmp_path / "index")
    assert sync_folder(index).unchanged == 6  # and nothing of the third shard
    assert remove_items(index, Selection(paths=(str(tmp_path / "shards" / "0.tar" / "01.png"),))).removed == 1
    with pytest.raises(InputError, match="has no image"):
        remove_items(index, Selection(paths=(str(tmp_path / "shards" / "0.tar" / "01.png"),)))
    assert sync_folder(index).added == 1


def test_images_in_shards_are_missing_where_the_shard_or_the_member_is_gone(
    tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    (tmp_path / "shards").mkdir()
    shards = [write_tar(tmp_path / "shards" / f"{n}.tar", pictures[3 * n : 3 * n + 3], tmp_path) for n in range(3)]
    index = build(str(tmp_path / "shards"), small_model, tmp_path / "index")
    assert remove_items(index, Selection(missing=True)).removed == 0
    write_tar(shards[0], pictures[:2], tmp_path)
    shards[2].unlink()
    assert remove_items(index, Selection(missing=True)).removed == 4
    assert set(list_labels(index)) == {"0.tar/00.png", "0.tar/01.png", "1.tar/00.png", "1.tar/01.png", "1.tar/02.png"}


def test_images_of_a_saved_data_set_are_not_missing(
    tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"image": [{"bytes": picture, "path": None} for picture in pictures[:3]]})
    saved.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    index = build(str(tmp_path / "saved"), small_model, tmp_path / "index")
    assert remove_items(index, Selection(missing=True)).removed == 0


def test_paths_of_a_list_are_relative_to_the_deepest_folder_of_all(
    gallery: Path, tmp_path: Path, small_model: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(gallery)
    given = ["cat/00.png", "./cat/00.png", f"{gallery}/dog/../dog/01.png", "dog//03.png", "cat/none.png"]
    images = open_files(given, "-")
    assert list(images.names) == ["cat/00.png", "dog/01.png", "dog/03.png", "cat/none.png"]
    assert (images.root, images.classes) == (str(gallery), ("cat", "dog"))
    index = tmp_path / "index"
    build_index(images, small_model, index, BuildOptions(source="-"))
    with pytest.raises(InputError, match="has paths from standard input"):
        sync_folder(index)
    changes = sync_folder(index, open_files(["dog/01.png", "dog/05.png"], "-"))
    assert (changes.added, changes.removed, changes.unchanged) == (1, 2, 1)
    assert list_labels(index) == {"dog/01.png": "dog", "dog/05.png": "dog"}


@pytest.mark.parametrize(
    "spelling",
    ["{gallery}/cat/../cat/00.png", "{gallery}//cat/./00.png", "{here}/link/cat/00.png", "{gallery}/inner/00.png"],
)
def test_an_image_has_one_path_however_it_is_spelled(index: Path, gallery: Path, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "link").symlink_to(gallery)
    (gallery / "inner").symlink_to(gallery / "cat")
    given = spelling.format(gallery=gallery, here=tmp_path)
    folder = given.removesuffix("00.png")
    assert add_images(index, [given, str(gallery / "cat" / "00.png")]).unchanged == 1
    assert add_images(index, [folder]).unchanged == 3
    assert sync_folder(index, folder).unchanged == 3
    manifest = write_csv(tmp_path / "m.csv", {given: "cat"})
    assert add_images(index, [str(manifest)]).unchanged == 1
    with pytest.raises(DataError, match=r"cat/00\.png is named twice"):
        add_images(index, [str(manifest), folder])
    write_csv(manifest, {given: "cat", "gallery/cat/00.png": "cat"})
    with pytest.raises(DataError, match="rows 1 and 2 have the same path"):
        add_images(index, [str(manifest)])
    assert len(list_labels(index)) == 6
    assert remove_items(index, Selection(paths=(given,))).removed == 1
    assert remove_items(index, Selection(paths=(folder,))).removed == 2


def test_images_to_remove_are_named_as_the_index_has_them_or_where_they_lie(
    index: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remove_items(index, Selection(paths=("./cat/../cat/00.png",))).removed == 1
    (gallery / "cat" / "02.png").unlink()
    monkeypatch.chdir(gallery / "dog")
    assert remove_items(index, Selection(paths=("../cat/02.png",))).removed == 1  # which is gone
    assert remove_items(index, Selection(paths=("01.png", "../cat/"))).removed == 2
    monkeypatch.chdir(gallery.parent)
    with pytest.raises(InputError, match="nothing would be left"):
        remove_items(index, Selection(paths=(".",)))


def test_an_absolute_row_of_a_manifest_that_the_index_has_is_no_second_image(
    index: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    other = write_gallery(tmp_path / "other", pictures[10:12])
    add_images(index, [str(other)])
    (tmp_path / "lists").mkdir()
    manifest = write_csv(tmp_path / "lists" / "m.csv", {"../other/cat/00.png": "a", "../gallery/cat/00.png": "b"})
    changes = sync_folder(index, str(manifest))
    assert (changes.added, changes.relabelled) == (0, 2)


def test_a_second_gallery_below_the_first_has_relative_paths_when_merged(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    inner = write_gallery(gallery / "inner", pictures[20:24])
    build_index(open_folder(inner, "i"), small_model, tmp_path / "second")
    merge_indexes([index, tmp_path / "second"], tmp_path / "both")
    assert {path for path in list_labels(tmp_path / "both") if path not in list_labels(index)} == {
        "inner/cat/00.png",
        "inner/cat/02.png",
        "inner/dog/01.png",
        "inner/dog/03.png",
    }
    assert sync_folder(tmp_path / "both").added == 0
    with pytest.raises(InputError, match=r"is in .* and in .*: remove it from one"):
        merge_indexes([tmp_path / "both", tmp_path / "second"], tmp_path / "third")


def test_an_index_of_several_manifests_does_not_follow_the_first_alone(
    gallery: Path, tmp_path: Path, small_model: EmbeddingSession
) -> None:
    parts = []
    for name in ("cat/00.png", "dog/01.png"):
        manifest = write_csv(gallery / f"{len(parts)}.csv", {name: "x"})
        parts.append(build(str(manifest), small_model, tmp_path / f"part{len(parts)}"))
    merge_indexes(parts, tmp_path / "both")
    with pytest.raises(InputError, match="or from several lists"):
        sync_folder(tmp_path / "both")
    assert len(list_labels(tmp_path / "both")) == 2


def test_a_name_that_is_not_utf_8_is_skipped_by_all_changes(index: Path, gallery: Path, pictures: list[bytes]) -> None:
    Path(os.fsdecode(os.fsencode(gallery) + b"/cat/\xe9.png")).write_bytes(pictures[20])
    for changes in (sync_folder(index), add_images(index, [str(gallery)])):
        assert (changes.added, changes.unchanged, len(changes.skipped)) == (0, 6, 1)
        assert changes.skipped[0].reason == "its name is not valid UTF-8"
    with pytest.raises(InputError, match="has no image"):
        remove_items(index, Selection(paths=(os.fsdecode(b"\xe9"),)))


def test_names_that_no_file_can_have_are_skipped(gallery: Path, tmp_path: Path, small_model: EmbeddingSession) -> None:
    manifest = tmp_path / "m.jsonl"
    names = ["gallery/cat/00.png", "gallery/a\0b.png", "a\0b/c.png", "\ud800/d.png", "gallery/cat/", "x" * 300]
    manifest.write_text("".join(json.dumps({"path": name}) + "\n" for name in names), encoding="utf-8")
    index = build(str(manifest), small_model, tmp_path / "index")
    assert list(list_labels(index)) == ["gallery/cat/00.png"]
    assert read_manifest(index).skipped == 5
    assert sync_folder(index).unchanged == 1


@pytest.mark.slow
def test_the_time_for_many_files_grows_with_their_number(index: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    names = [str(many / f"{number}.png") for number in range(30_000)]
    for name in names:
        Path(name).touch()

    def measure(count: int) -> float:
        started = process_time()
        with Index(index) as opened:
            (source,) = find_sources(opened, names[:count])
            assert len(source.paths) == count
        return process_time() - started

    assert measure(30_000) < 12 * measure(5_000)


def test_the_catalogue_is_read_once_for_any_number_of_paths(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    select = Catalogue.select
    monkeypatch.setattr(Catalogue, "select", lambda self, *rest: asked.append(rest[0]) or select(self, *rest))
    paths = ("cat/00.png", "cat/02.png", "cat/04.png", "dog")
    with pytest.raises(InputError, match="nothing would be left"):
        remove_items(index, Selection(paths=paths))
    assert sum("FROM items" in statement for statement in asked) <= 2
