import json
import sqlite3
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image

from indistill.data.sets import open_folder
from indistill.errors import DataError, ExistsError, IndexFolderError, InputError
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.search import search_images
from indistill.retrieval.sheet import SheetRow, render_sheet
from indistill.retrieval.store.build import BuildOptions, build_index
from indistill.retrieval.store.generations import name_generation, read_manifest

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "student.onnx"
    pixels = RANDOM.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, path)
    return EmbeddingSession(path)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    for label in ("cat", "döner"):
        (folder / label).mkdir()
        for i in range(80):
            pixels = RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(folder / label / f"{i:03}.png")
    (folder / "cat" / "040.png").write_bytes(b"")
    (folder / "cat" / "041.png").write_text("text")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, gallery: Path, session: EmbeddingSession) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    build_index(open_folder(gallery, "g"), session, out)
    return out


def test_every_image_finds_itself_by_its_own_path_and_label(index: Path, gallery: Path) -> None:
    names = [f"{label}/{i:03}.png" for label in ("cat", "döner") for i in (0, 39, 42, 79)]
    results = search_images(index, [gallery / name for name in names], k=3)
    assert [hits[0].path for _, hits in results.queries] == names
    assert [hits[0].label for _, hits in results.queries] == ["cat"] * 4 + ["döner"] * 4
    for _, hits in results.queries:
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.rank for hit in hits] == [1, 2, 3]
        assert hits[0].score >= hits[1].score >= hits[2].score
    assert results.root == gallery.resolve()


def test_hits_are_those_of_a_sort_of_all_inner_products(index: Path, session: EmbeddingSession, gallery: Path) -> None:
    with Index(index) as opened:
        ids, vectors, labels = opened.read_vectors()
    assert labels.count("cat") == 78
    query = session.embed_images([gallery / "cat" / "007.png"])
    with Index(index) as opened:
        (hits,) = opened.search(query, 20)
    scores = vectors @ query[0]
    order = np.lexsort((ids, -scores))[:20]
    assert [hit.id for hit in hits] == ids[order].tolist()
    assert np.allclose([hit.score for hit in hits], scores[order], atol=1e-6)


def test_bad_images_are_listed_with_the_reason_and_shift_no_row(index: Path) -> None:
    skipped = [json.loads(line) for line in (name_generation(index, 1) / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [
        {"name": "cat/040.png", "reason": "empty file"},
        {"name": "cat/041.png", "reason": "not an image that Pillow can read"},
    ]
    manifest = read_manifest(index)
    assert (manifest.items, manifest.skipped, manifest.generation, manifest.factory) == (158, 2, 1, "IDMap,Flat")


def test_equal_scores_come_in_the_order_of_their_ids(tmp_path: Path, session: EmbeddingSession) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for i in range(30):
        Image.new("RGB", (8, 8), "red").save(folder / f"{i:02}.png")
    build_index(open_folder(folder, "same"), session, tmp_path / "index")
    (_, hits) = search_images(tmp_path / "index", [folder / "17.png"], k=5).queries[0]
    assert [hit.id for hit in hits] == [1, 2, 3, 4, 5]


def test_more_hits_than_images_are_all_images(index: Path, gallery: Path) -> None:
    (_, hits) = search_images(index, [gallery / "cat" / "000.png"], k=1000).queries[0]
    assert len(hits) == len({hit.id for hit in hits}) == 158


def test_an_index_is_not_overwritten_without_being_told_to(
    tmp_path: Path, gallery: Path, session: EmbeddingSession
) -> None:
    out, images = tmp_path / "index", open_folder(gallery / "cat", "cat")
    build_index(images, session, out)
    with pytest.raises(ExistsError, match="replace it with --overwrite"):
        build_index(images, session, out)
    build_index(open_folder(gallery, "g"), session, out, BuildOptions(overwrite=True))
    assert read_manifest(out).items == 158
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.txt").touch()
    with pytest.raises(ExistsError, match="is not an index"):
        build_index(images, session, other, BuildOptions(overwrite=True))


def test_a_build_that_fails_leaves_the_old_index_and_nothing_else(
    tmp_path: Path, gallery: Path, session: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "index"
    build_index(open_folder(gallery, "g"), session, out)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(faiss, "write_index", fail)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        build_index(open_folder(gallery / "cat", "cat"), session, out, BuildOptions(overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert read_manifest(out).items == 158


def test_a_gallery_of_bad_images_is_an_error(tmp_path: Path, session: EmbeddingSession) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images can be read; a\.png: empty file"):
        build_index(open_folder(tmp_path / "g", "g"), session, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_another_model_is_refused(index: Path, tmp_path: Path, session: EmbeddingSession) -> None:
    torch.manual_seed(1)
    pixels = RANDOM.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, tmp_path / "other.onnx")
    with pytest.raises(IndexFolderError, match=r"other\.onnx is not the model of the index"):
        open_model(index, tmp_path / "other.onnx")
    assert open_model(index, session.path).sha256 == open_model(index).sha256


@pytest.mark.parametrize("name", ["index.faiss", "catalogue.sqlite", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_index_says_so(
    tmp_path: Path, gallery: Path, session: EmbeddingSession, name: str, damage: str
) -> None:
    out = tmp_path / "index"
    build_index(open_folder(gallery, "g"), session, out)
    file = out / "generations" / "00000001" / name
    content = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    with pytest.raises(IndexFolderError, match="is damaged"):
        search_images(out, [gallery / "cat" / "000.png"], k=158)


def test_a_folder_that_is_no_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexFolderError, match=r"is not an index .*indistill index build"):
        read_manifest(tmp_path)


def test_the_catalogue_holds_what_tells_a_changed_file(index: Path, gallery: Path) -> None:
    import hashlib

    with closing(sqlite3.connect(index / "generations" / "00000001" / "catalogue.sqlite")) as connection:
        row = connection.execute("SELECT * FROM items WHERE path = 'döner/005.png'").fetchone()
    file = gallery / "döner" / "005.png"
    expected = ("döner", hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, file.stat().st_mtime_ns)
    assert row[2:] == expected


def test_the_contact_sheet_needs_no_other_file_and_escapes_names(index: Path, gallery: Path, tmp_path: Path) -> None:
    query = tmp_path / "<b>&.png"
    query.write_bytes((gallery / "cat" / "000.png").read_bytes())
    results = search_images(index, [query], k=4)
    page = render_sheet([SheetRow(query, results.queries[0][1], "cat")], results.root)
    assert page.count("data:image/jpeg;base64,") == 5
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;.png" in page
    assert 'class="right"' in page
    assert "http:" not in page
    assert "https:" not in page
    missing = render_sheet([SheetRow(query, results.queries[0][1])], tmp_path / "moved")
    assert missing.count("no image") == 4


@pytest.mark.parametrize("name", ["a#b", "50%20x", "what?", "grün"])
def test_an_index_may_have_any_folder_name(tmp_path: Path, gallery: Path, session: EmbeddingSession, name: str) -> None:
    build_index(open_folder(gallery / "cat", "cat"), session, tmp_path / name / "index")
    (_, hits) = search_images(tmp_path / name / "index", [gallery / "cat" / "000.png"], k=1).queries[0]
    assert hits[0].path == "000.png"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_search_leaves_the_threads_of_torch_alone(index: Path, gallery: Path) -> None:
    """FAISS and torch share the setting in one process."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        search_images(index, [gallery / "cat" / "000.png"], k=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
