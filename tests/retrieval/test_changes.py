"""What adding, removing and following do to an index."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indistill.data.sets import open_folder
from indistill.errors import DataError, IndexFolderError, InputError
from indistill.export.session import EmbeddingSession
from indistill.images import SkippedImage
from indistill.retrieval.index import Index
from indistill.retrieval.store.build import build_index
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import PENDING, lock_index, read_manifest
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import verify_index
from indistill.retrieval.where import parse_where
from tests.retrieval.conftest import write_gallery


@pytest.fixture
def gallery(tmp_path: Path, pictures: list[bytes]) -> Path:
    return write_gallery(tmp_path / "gallery", pictures[:10])


@pytest.fixture
def index(tmp_path: Path, gallery: Path, small_model: EmbeddingSession) -> Path:
    build_index(open_folder(gallery, "g"), small_model, tmp_path / "index")
    return tmp_path / "index"


def list_contents(folder: Path) -> dict[str, tuple[int, str | None, str]]:
    """Returns id, label and SHA-256 by path, of an index that must be whole."""
    assert verify_index(folder).problems == ()
    with Index(folder) as index:
        return {item.path: (item.id, item.label, item.sha256) for item in index.catalogue.list_items()}


def assert_vectors_are_of_the_files(folder: Path, model: EmbeddingSession) -> None:
    with Index(folder) as index:
        items = list(index.catalogue.list_items())
        expected = model.embed_images([index.root / item.path for item in items])
        ids, vectors, _ = index.read_vectors()
        assert ids.tolist() == [item.id for item in items]
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        found = [hits[0] for hits in index.search(expected, 1)]
        assert [hit.score for hit in found] == pytest.approx([1.0] * len(items), abs=1e-5)


def test_added_images_have_the_next_ids_and_the_class_of_their_folder(
    index: Path, gallery: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    (gallery / "cat" / "new.png").write_bytes(pictures[20])
    (gallery / "cow").mkdir()
    (gallery / "cow" / "new.png").write_bytes(pictures[21])
    changes = add_images(index, [str(gallery / "cat" / "new.png"), str(gallery / "cow")])
    assert (changes.added, changes.unchanged, changes.removed) == (2, 0, 0)
    found = list_contents(index)
    assert {path: found[path][:2] for path in ("cow/new.png", "cat/new.png")} == {
        "cow/new.png": (11, "cow"),
        "cat/new.png": (12, "cat"),
    }
    assert_vectors_are_of_the_files(index, small_model)


def test_images_from_elsewhere_have_absolute_paths_and_their_own_classes(
    index: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    other = write_gallery(tmp_path / "other", pictures[20:24])
    add_images(index, [str(other)])
    found = list_contents(index)
    assert found[str(other / "dog" / "01.png")][1] == "dog"
    assert len(found) == 14
    assert_vectors_are_of_the_files(index, small_model)
    add_images(index, [str(other / "cat")], label="lion")
    assert list_contents(index)[str(other / "cat" / "00.png")][1] == "lion"


def test_to_add_what_is_there_changes_nothing(index: Path, gallery: Path) -> None:
    before = read_manifest(index)
    changes = add_images(index, [str(gallery)])
    assert (changes.added, changes.unchanged) == (0, 10)
    assert read_manifest(index) == before


def test_an_image_named_twice_is_refused(index: Path, gallery: Path) -> None:
    with pytest.raises(DataError, match=r"cat/00\.png is named twice"):
        add_images(index, [str(gallery / "cat"), str(gallery / "cat" / "00.png")])


def test_a_folder_is_followed(index: Path, gallery: Path, pictures: list[bytes], small_model: EmbeddingSession) -> None:
    before = list_contents(index)
    (gallery / "cat" / "00.png").unlink()
    (gallery / "cat" / "02.png").write_bytes(pictures[20])
    (gallery / "cat" / "04.png").rename(gallery / "dog" / "moved.png")
    (gallery / "dog" / "new.png").write_bytes(pictures[21])
    (gallery / "dog" / "bad.png").write_bytes(b"")
    changes = sync_folder(index)
    assert (changes.added, changes.changed, changes.moved, changes.removed, changes.unchanged) == (1, 1, 1, 1, 7)
    assert changes.skipped == [SkippedImage("dog/bad.png", "empty file")]
    after = list_contents(index)
    assert after["dog/moved.png"][:2] == (before["cat/04.png"][0], "dog")
    assert after["cat/02.png"][0] > 10
    assert {path: value for path, value in after.items() if path in before and path != "cat/02.png"} == {
        path: value for path, value in before.items() if path not in ("cat/00.png", "cat/02.png", "cat/04.png")
    }
    assert_vectors_are_of_the_files(index, small_model)


def test_files_that_change_places_keep_their_ids(index: Path, gallery: Path) -> None:
    before = list_contents(index)
    one, two = gallery / "cat" / "00.png", gallery / "cat" / "02.png"
    one.rename(gallery / "aside")
    two.rename(one)
    (gallery / "aside").rename(two)
    changes = sync_folder(index)
    assert (changes.moved, changes.changed, changes.removed) == (2, 0, 0)
    after = list_contents(index)
    assert (after["cat/00.png"], after["cat/02.png"]) == (before["cat/02.png"], before["cat/00.png"])


def test_a_subfolder_is_followed_and_the_rest_left_alone(index: Path, gallery: Path, pictures: list[bytes]) -> None:
    shutil.rmtree(gallery / "dog")
    (gallery / "cat" / "00.png").unlink()
    (gallery / "cat" / "new.png").write_bytes(pictures[20])
    changes = sync_folder(index, str(gallery / "cat"))
    assert (changes.added, changes.removed) == (1, 1)
    found = list_contents(index)
    assert sum(path.startswith("dog/") for path in found) == 5
    assert found["cat/new.png"][1] == "cat"


def test_a_folder_without_images_empties_no_index(index: Path, gallery: Path) -> None:
    shutil.rmtree(gallery)
    gallery.mkdir()
    with pytest.raises(DataError, match="holds no images"):
        sync_folder(index)
    gallery.rmdir()
    with pytest.raises(InputError, match="is not there: mount it"):
        sync_folder(index)
    assert len(list_contents(index)) == 10


def test_a_file_that_was_only_touched_is_read_once_and_keeps_its_id(index: Path, gallery: Path) -> None:
    before = list_contents(index)
    (gallery / "cat" / "00.png").touch()
    assert sync_folder(index).unchanged == 10
    assert list_contents(index) == before
    generation = read_manifest(index).generation
    sync_folder(index)
    assert read_manifest(index).generation == generation


def test_a_gallery_that_moved_keeps_its_ids_and_embeds_nothing(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = write_gallery(tmp_path / "extra", pictures[20:22])
    add_images(index, [str(extra)])
    before, moved = list_contents(index), tmp_path / "elsewhere" / "gallery"
    moved.parent.mkdir()
    gallery.rename(moved)
    with pytest.raises(InputError, match=r"gallery is not there: mount it; if it has moved .* --moved"):
        sync_folder(index)
    with pytest.raises(InputError, match=rf"if it has moved to {moved} as a whole, add --moved"):
        sync_folder(index, str(moved))
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingSession, "embed_pixels", lambda *_: pytest.fail("an image was embedded"))
        changes = sync_folder(index, str(moved), moved=True)
    assert (changes.unchanged, changes.moved, changes.added, changes.removed) == (10, 0, 0, 0)
    assert list_contents(index) == before
    manifest = read_manifest(index)
    assert (manifest.root, manifest.source) == (str(moved), str(moved))
    (moved / "cat" / "new.png").write_bytes(pictures[23])
    assert sync_folder(index).added == 1


def test_a_gallery_that_moved_and_changed_is_followed_at_its_new_place(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    moved = Path(shutil.copytree(gallery, tmp_path / "copy", copy_function=shutil.copyfile))  # with other times
    shutil.rmtree(gallery)
    files = sorted(moved.rglob("*.png"))
    files[0].unlink()
    files[1].rename(files[1].with_name("other.png"))
    files[2].write_bytes(pictures[22])
    changes = sync_folder(index, str(moved), moved=True)
    assert (changes.moved, changes.changed, changes.removed, changes.unchanged) == (1, 1, 1, 7)
    assert_vectors_are_of_the_files(index, small_model)


def test_another_folder_is_not_taken_for_a_gallery_that_moved(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes]
) -> None:
    before, other = list_contents(index), write_gallery(tmp_path / "other", pictures[:4])
    numbered = write_gallery(tmp_path / "numbered", [pictures[0], *pictures[20:29]])  # the same names
    for given, words in (
        (str(other), "has 4 of the 10 images of the gallery .* at their paths, fewer than half"),
        (str(numbered), "has 1 of the 10 images of the gallery .* unchanged, fewer than half"),
        (str(tmp_path / "none"), "is no folder, manifest or tar shard"),
        (None, "name the place where the gallery is now"),
    ):
        with pytest.raises(InputError, match=words):
            sync_folder(index, given, moved=True)
    assert list_contents(index) == before
    moved = gallery.rename(tmp_path / "moved")
    add_images(index, [str(moved)])
    with pytest.raises(InputError, match=f"has 10 images of {moved} as images from elsewhere: give 'index remove"):
        sync_folder(index, str(moved), moved=True)
    remove_items(index, Selection(paths=(str(moved),)))
    assert sync_folder(index, str(moved), moved=True).unchanged == 10


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(paths=("cat/00.png",)), 9),
        (Selection(paths=("cat",)), 5),
        (Selection(ids=(1, 2, 2)), 8),
        (Selection(where="label = 'dog' and id > 8"), 8),
        (Selection(paths=("cat",), ids=(6,)), 4),
    ],
)
def test_images_are_removed_by_what_names_them(
    index: Path, selection: Selection, left: int, small_model: EmbeddingSession
) -> None:
    changes = remove_items(index, selection)
    assert (changes.removed, changes.unchanged) == (10 - left, left)
    assert len(list_contents(index)) == left
    assert_vectors_are_of_the_files(index, small_model)


def test_images_whose_files_are_gone_are_removed(index: Path, gallery: Path) -> None:
    (gallery / "cat" / "00.png").unlink()
    assert remove_items(index, Selection(missing=True)).removed == 1
    shutil.rmtree(gallery)
    with pytest.raises(InputError, match="is not there: mount it"):
        remove_items(index, Selection(missing=True))


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (Selection(), "say what to remove"),
        (Selection(paths=("",)), "--path is empty"),
        (Selection(paths=("bird",)), "has no image bird, and none below it"),
        (Selection(ids=(1, 99)), "has no id 99"),
        (Selection(where="id > 0"), "nothing would be left"),
    ],
)
def test_a_removal_that_names_nothing_or_everything_is_refused(index: Path, selection: Selection, words: str) -> None:
    before = list_contents(index)
    with pytest.raises(InputError, match=words):
        remove_items(index, selection)
    assert list_contents(index) == before


def test_ids_are_never_used_again(index: Path, gallery: Path) -> None:
    remove_items(index, Selection(ids=(9, 10)))
    add_images(index, [str(gallery)])
    found = {value[0] for value in list_contents(index).values()}
    assert found == {*range(1, 9), 11, 12}


def test_what_was_embedded_before_a_change_was_cut_off_is_not_embedded_again(
    index: Path, gallery: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import indistill.retrieval.embed as embed

    monkeypatch.setattr(embed, "BATCH_SIZE", 4)
    for number, picture in enumerate(pictures[10:22]):
        (gallery / "cat" / f"more{number:02d}.png").write_bytes(picture)

    class Interrupt:
        def __init__(self, total: int) -> None:
            self.done = 0

        def __enter__(self) -> "Interrupt":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __call__(self, count: int) -> None:
            self.done += count
            if self.done == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        sync_folder(index, show=Interrupt)
    assert caught.value.__notes__ == ["8 embeddings are kept: the same command goes on from there"]
    assert (index / PENDING).stat().st_size > 0
    assert len(list_contents(index)) == 10
    embedded: list[int] = []
    original = EmbeddingSession.embed_pixels
    monkeypatch.setattr(
        EmbeddingSession, "embed_pixels", lambda self, pixels: embedded.append(len(pixels)) or original(self, pixels)
    )
    assert sync_folder(index).added == 12
    assert sum(embedded) == 4  # of twelve, two batches of four were kept
    assert not (index / PENDING).exists()


def test_content_that_the_index_has_is_not_embedded_again(
    index: Path, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(gallery / "cat" / "00.png", gallery / "dog" / "copy.png")
    monkeypatch.setattr(EmbeddingSession, "embed_pixels", None)
    assert sync_folder(index).added == 1
    found = list_contents(index)
    assert found["dog/copy.png"][2] == found["cat/00.png"][2]


def test_one_process_changes_an_index_at_a_time_and_others_read_it(index: Path, gallery: Path) -> None:
    with lock_index(index):
        with pytest.raises(IndexFolderError, match="is being changed by another process"):
            sync_folder(index)
        assert len(list_contents(index)) == 10


def test_who_has_an_index_open_keeps_it_through_a_change(index: Path, gallery: Path, pictures: list[bytes]) -> None:
    with Index(index) as before:
        queries = before.read_vectors()[1]
        expected = before.search(queries, 10)
        for number in (30, 31, 32):
            (gallery / "cat" / f"{number}.png").write_bytes(pictures[number])
            sync_folder(index)
        assert before.search(queries, 10) == expected
        assert len(list_contents(index)) == 13


def test_an_index_after_changes_is_that_of_a_new_build(
    index: Path, gallery: Path, tmp_path: Path, pictures: list[bytes], small_model: EmbeddingSession
) -> None:
    (gallery / "dog" / "01.png").unlink()
    (gallery / "top.png").write_bytes(pictures[25])  # no classes any more
    sync_folder(index)
    build_index(open_folder(gallery, "g"), small_model, tmp_path / "fresh")
    followed, fresh = list_contents(index), list_contents(tmp_path / "fresh")
    assert {path: value[1:] for path, value in followed.items()} == {path: value[1:] for path, value in fresh.items()}
    assert {value[1] for value in followed.values()} == {None}
    top = hashlib.sha256(pictures[25]).hexdigest()
    assert followed["top.png"][2] == top


def test_an_index_is_searched_by_images_of_any_kind(index: Path, gallery: Path) -> None:
    file = gallery / "dog" / "01.png"
    with Image.open(file) as image, Index.open(str(index)) as opened:
        found = opened.search([file, str(file), file.read_bytes(), image], 2)
        assert [hits[0].path for hits in found] == ["dog/01.png"] * 4
        assert {len(hits) for hits in found} == {2}
        (by_label,) = opened.search([file], 10, where=parse_where("label = 'cat'"))
        assert {hit.label for hit in by_label} == {"cat"}
        assert len(by_label) == 5
        (near,) = opened.search([file], 10, threshold=0.999)
        assert [hit.path for hit in near] == ["dog/01.png"]


def test_many_small_additions_leave_few_files_and_lose_nothing(
    index: Path, gallery: Path, pictures: list[bytes], small_model: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indistill.retrieval.store.edit.MOST_SEGMENTS", 3)
    remove_items(index, Selection(ids=(3,)))
    for number in range(20, 28):
        (gallery / "cat" / f"{number}.png").write_bytes(pictures[number])
        add_images(index, [str(gallery / "cat" / f"{number}.png")])
        assert len(read_manifest(index).segments) <= 3
    assert len(list_contents(index)) == 17
    assert_vectors_are_of_the_files(index, small_model)


def test_images_without_a_path_are_not_added_to_a_folders_index(index: Path) -> None:
    with pytest.raises(DataError, match="'digits/test' is no folder, so that its images have no path"):
        add_images(index, ["digits/test"])
