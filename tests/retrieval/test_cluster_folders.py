"""What a build on a cluster writes, replaces and refuses, without one: its folders, and the chunks of embeddings."""

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indistill.data.sets import ArraySet, FolderSet, ImageSet
from indistill.data.specs import open_images
from indistill.data.urls import UrlSet
from indistill.errors import ExistsError, IndexFolderError, InputError
from indistill.export.session import EmbeddingSession
from indistill.files.locking import LOCK
from indistill.retrieval.cluster import building
from indistill.retrieval.cluster.building import Spread, build_on_cluster, check_output
from indistill.retrieval.cluster.chunks import (
    Chunk,
    cut_images,
    plan_chunks,
    read_chunk,
    require_own_chunks,
    write_chunk,
)
from indistill.retrieval.cluster.embedding import Embedder, find_absent
from indistill.retrieval.cluster.shards import list_shards
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index import Index
from indistill.retrieval.opening import open_index
from indistill.retrieval.store.build import BuildOptions, IndexType, build_index
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import (
    CURRENT,
    MANIFEST,
    PENDING_CHUNKS,
    SHARDS,
    lock_index,
    name_generation,
    read_manifest,
)
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import rebuild_index
from tests.cli.calls import assert_refused, run_cli, snapshot
from tests.retrieval.conftest import write_gallery

KIND = IndexType("IVF4,SQ8", {"nprobe": 4})


@pytest.fixture
def gallery(tmp_path: Path, pictures: list[bytes]) -> FolderSet:
    folder = write_gallery(tmp_path / "gallery", pictures)
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    images = open_images(str(folder))
    assert isinstance(images, FolderSet)
    return images


def write_chunks(folder: Path, images: ImageSet, model: EmbeddingSession, source: str = "") -> list[Chunk]:
    """Writes what the actors of a cluster would make."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = plan_chunks(images, 8, source)
    for chunk in chunks:
        part = cut_images(images, chunk.start, chunk.stop)
        write_chunk(folder, chunk, part, embed_files(part, model), model_sha256=model.sha256, node="here")
    return chunks


def write_shards(out: Path, images: ImageSet, model: EmbeddingSession, shards: int = 2) -> None:
    """Does what a build does when all is embedded."""
    spread, kept = Spread(shards=shards), out.with_name("kept")
    check_output(out, spread, overwrite=True)
    out.mkdir(exist_ok=True)
    with lock_index(out, create=True):
        chunks = write_chunks(kept, images, model)
        source = building._Source(images, model, kept, chunks, spread.part_vectors, "")
        building._write(source, out, BuildOptions(lambda _: KIND), shards)


@pytest.mark.parametrize("name", ["shards-of-photos", "shards-1", "shards-000000001", "notes"])
@pytest.mark.parametrize("beside", [SHARDS, LOCK])
def test_folders_of_the_user_are_no_shards(tmp_path: Path, name: str, beside: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / beside).touch()
    with pytest.raises(ExistsError, match="is not a folder of shards"):
        check_output(tmp_path, Spread(shards=2), overwrite=True)


def test_a_folder_that_has_a_name_of_ours_alone_is_no_folder_of_shards(tmp_path: Path) -> None:
    (tmp_path / "shards-20240101").mkdir()
    with pytest.raises(ExistsError, match="is not a folder of shards"):
        check_output(tmp_path, Spread(shards=2), overwrite=True)
    (tmp_path / LOCK).touch()
    check_output(tmp_path, Spread(shards=2), overwrite=True)


@pytest.mark.parametrize(
    ("out", "kept"), [("eo", "eo"), ("eo", "eo/kept"), ("eo", "eo/pending.chunks"), ("eo/index", "eo"), ("link", "eo")]
)
@pytest.mark.parametrize("shards", [None, 2])
def test_embeddings_in_the_index_or_around_it_are_refused(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, out: str, kept: str, shards: int | None
) -> None:
    (tmp_path / "eo").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "eo")
    options = ["-m", small_model.path, "-o", tmp_path / out, "--embeddings", tmp_path / kept, "--engine", "ray"]
    options += [] if shards is None else ["--shards", shards]
    assert_refused(run_cli("index", "build", gallery.root, *options), f"--embeddings {tmp_path / kept}", "side by side")
    with pytest.raises(InputError, match="side by side"):
        build_on_cluster(
            gallery, small_model, tmp_path / out, BuildOptions(), Spread(shards=shards, embeddings=tmp_path / kept)
        )
    assert list((tmp_path / "eo").iterdir()) == []


def test_embeddings_of_another_model_or_gallery_are_refused_and_stay(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, pictures: list[bytes]
) -> None:
    kept = tmp_path / "kept"
    (chunk, *_) = write_chunks(kept, gallery, small_model, gallery.root)
    require_own_chunks(kept, chunk, small_model.sha256)
    (Path(gallery.root) / "dog" / "new.png").write_bytes(pictures[0])  # the gallery has grown: the same one still
    grown = plan_chunks(open_images(gallery.root), 8)[0]
    require_own_chunks(kept, grown, small_model.sha256)
    with pytest.raises(IndexFolderError, match="are of another model: choose another --embeddings"):
        require_own_chunks(kept, chunk, "0" * 64)
    other = plan_chunks(open_images(str(write_gallery(tmp_path / "other", pictures))), 8)[0]
    with pytest.raises(IndexFolderError, match=f"are of another gallery, {gallery.root}: choose"):
        require_own_chunks(kept, other, small_model.sha256)
    (kept / "000000.json").unlink()  # another chunk says so too
    with pytest.raises(IndexFolderError, match="are of another gallery"):
        require_own_chunks(kept, other, small_model.sha256)


def test_embeddings_that_another_process_writes_are_refused(tmp_path: Path) -> None:
    with building._open_embeddings(tmp_path / "index", tmp_path / "kept") as folder:
        (folder / "000000.json").touch()
        with (
            pytest.raises(
                IndexFolderError, match=r"the folder of embeddings .*kept is being changed by another process"
            ),
            building._open_embeddings(tmp_path / "else", tmp_path / "kept"),
        ):
            pass
    assert (tmp_path / "kept" / "000000.json").exists()


def test_embeddings_that_hold_nothing_do_not_stay(tmp_path: Path) -> None:
    with building._open_embeddings(tmp_path / "index", tmp_path / "kept"):
        pass
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "name",
    [
        f"{PENDING_CHUNKS}/000000.parquet.partial",
        f"{PENDING_CHUNKS}/000000.json",
        SHARDS,
        f"{SHARDS}.partial",
        "shards-00000001",
        "shards-00000001/0000",
    ],
)
def test_links_in_a_folder_of_a_stranger_are_not_followed(tmp_path: Path, name: str) -> None:
    mine, link = tmp_path / "mine", tmp_path / "index" / name
    mine.write_bytes(b"precious")
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    with (
        pytest.raises(IndexFolderError, match=f"has a link in place of its {name}: it is not safe"),
        lock_index(tmp_path / "index", create=True),
    ):
        pass
    assert mine.read_bytes() == b"precious"


def test_links_among_the_embeddings_are_not_followed(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    (chunk, *_) = plan_chunks(gallery, 8)
    (tmp_path / "000003.json.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(IndexFolderError, match="has a link in place of its 000003"):
        require_own_chunks(tmp_path, chunk, small_model.sha256)


def test_shards_that_are_replaced_stay_for_their_readers_until_the_next_build(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    out = tmp_path / "shards"
    write_shards(out, gallery, small_model)
    listed = list_shards(out)
    assert listed is not None
    (out / "shards-00000007").mkdir()  # of a build that was cut off
    (out / f"{SHARDS}.partial").touch()
    write_shards(out, gallery, small_model, 3)
    for shard in listed:
        Index(shard).close()
    assert {path.name for path in out.glob("shards-*")} == {"shards-00000001", "shards-00000008"}
    write_shards(out, gallery, small_model, 1)
    assert {path.name for path in out.glob("shards-*")} == {"shards-00000008", "shards-00000009"}
    with open_index(out) as index:
        assert (index.manifest.items, index.manifest.skipped) == (40, 1)


def test_a_damaged_list_of_shards_is_replaced(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    out = tmp_path / "shards"
    write_shards(out, gallery, small_model)
    (out / SHARDS).write_text("{")
    write_shards(out, gallery, small_model, 3)
    assert [path.name for path in list_shards(out) or ()] == ["0000", "0001", "0002"]
    with open_index(out) as index:
        assert [item.id for item in index.list_items()] == list(range(1, 41))


def test_a_shard_reads_no_chunk_of_the_others(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    chunks = write_chunks(tmp_path / "kept", gallery, small_model)
    source = building._Source(gallery, small_model, tmp_path / "kept", chunks, 100, "")
    whole = source.gather()
    counts = [len(read.files) for chunk in chunks if (read := read_chunk(source.folder, chunk, small_model.sha256))]
    for start, stop in ((0, 40), (0, 1), (counts[0] - 1, counts[0]), (counts[0], 16), (9, 23), (39, 40)):
        part = source.gather(start, stop)
        assert part.files == whole.files[start:stop]
        np.testing.assert_array_equal(part.vectors, whole.vectors[start:stop])
    for number in (0, 1, 4, 5):
        (tmp_path / "kept" / f"{number:06d}.parquet").unlink()
    assert source.gather(sum(counts[:2]), sum(counts[:4])).files == whole.files[sum(counts[:2]) : sum(counts[:4])]


def test_what_has_no_room_in_the_shards_is_refused_before_anything_is_done(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    with pytest.raises(InputError, match="41 images cannot be in 42 shards: give fewer"):
        build_on_cluster(gallery, small_model, tmp_path / "out", BuildOptions(), Spread(shards=42))
    assert not (tmp_path / "out").exists()


def test_limits_that_a_sample_cannot_show_are_refused(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SAMPLE", 40)
    line = ["index", "build", gallery.root, "-m", small_model.path, "-o", tmp_path / "out", "--engine", "ray"]
    for limit in (["--max-memory", "1GB"], ["--max-latency", "1s"]):
        result = run_cli(*line, *limit)
        assert "--max-memory and --max-latency are kept on 40 images at most, and the gallery has 41" in result.err
        assert result.code == 2
    assert not (tmp_path / "out").exists()


def test_a_class_whose_name_is_not_utf8_is_skipped(
    tmp_path: Path, small_model: EmbeddingSession, pictures: list[bytes]
) -> None:
    folder = write_gallery(tmp_path / "gallery", pictures[:2])
    bad = os.fsdecode(b"\xff")
    (folder / bad).mkdir()
    (folder / bad / "1.png").write_bytes(pictures[2])
    images = open_images(str(folder))
    (chunk,) = write_chunks(tmp_path / "kept", images, small_model)
    found = read_chunk(tmp_path / "kept", chunk, small_model.sha256)
    assert found is not None
    assert [file.name for file in found.files] == ["cat/00.png", "dog/01.png"]
    assert [image.name for image in found.skipped] == ["\\udcff/1.png"]


def test_an_empty_mount_point_is_told_from_files_that_are_gone(gallery: FolderSet) -> None:
    assert find_absent(gallery, seen=True) is None
    for path in Path(gallery.root).iterdir():
        shutil.rmtree(path)
    assert find_absent(gallery, seen=False) is None
    assert find_absent(gallery, seen=True) == Path(gallery.root) / gallery.names[0]
    Path(gallery.root).rmdir()
    assert find_absent(gallery, seen=False) == Path(gallery.root)


def test_images_without_times_are_compared_by_content(small_model: EmbeddingSession) -> None:
    rng = np.random.default_rng(0)
    images = ArraySet("a", rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), "012", (), np.full(3, -1))
    embedder = Embedder(small_model.path.read_bytes())
    stored = embedder.embed(images, None, seen=True)
    assert embedder.embed(images, stored, seen=True) is None
    assert embedder.embed(replace(images, images=images.images[::-1].copy()), stored, seen=True) is not None


def test_images_of_an_address_without_times_are_compared_too(gallery: FolderSet, small_model: EmbeddingSession) -> None:
    images = open_images(f"file://{gallery.root}")
    assert isinstance(images, UrlSet)
    timeless = replace(images, modified=[0] * len(images.names))
    embedder = Embedder(small_model.path.read_bytes())
    for before in (images, timeless):
        stored = embedder.embed(before, None, seen=True)
        assert embedder.embed(before, stored, seen=True) is None
        assert embedder.embed(replace(before, sizes=[1] * len(before.names)), stored, seen=True) is None or (
            before is images
        )
    shutil.copy(Path(gallery.root) / "dog" / "01.png", Path(gallery.root) / "cat" / "00.png")
    assert embedder.embed(timeless, stored, seen=True) is not None


def test_a_saved_data_set_that_is_saved_anew_is_embedded_anew(
    tmp_path: Path, small_model: EmbeddingSession, pictures: list[bytes]
) -> None:
    datasets = pytest.importorskip("datasets")
    embedder, stored, answers = Embedder(small_model.path.read_bytes()), None, []
    features = datasets.Features({"image": datasets.Image()})
    for number, part in enumerate((pictures[:3], pictures[:3], pictures[3:6])):
        rows = {"image": [{"bytes": picture, "path": None} for picture in part]}
        folder = tmp_path / str(number)
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
        answers.append(embedder.embed(open_images(str(folder)), stored, seen=True))
        stored = stored or answers[0]
    assert answers[1] is None
    assert answers[2] is not None


def test_the_type_of_a_shard_is_not_changed(tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession) -> None:
    out = tmp_path / "shards"
    write_shards(out, gallery, small_model)
    shard = out / "shards-00000001" / "0001"
    with pytest.raises(InputError, match="is a shard, and all shards of a folder have one type"):
        rebuild_index(shard, lambda _: IndexType("IVF2,Flat"))
    rebuild_index(shard)
    open_index(out).close()


def test_a_build_here_removes_what_one_on_a_cluster_left(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    out = tmp_path / "index"
    write_chunks(out / PENDING_CHUNKS, gallery, small_model)
    (out / LOCK).touch()
    build_index(gallery, small_model, out)
    assert not (out / PENDING_CHUNKS).exists()


def test_a_folder_of_shards_stays_one_while_it_is_built_again(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession
) -> None:
    out = tmp_path / "shards"
    write_shards(out, gallery, small_model)
    (out / PENDING_CHUNKS).mkdir()
    before = snapshot(out)
    assert_refused(run_cli("serve", out), "is a folder of shards")
    assert_refused(run_cli("index", "add", out, gallery.root), "is a folder of shards")
    assert snapshot(out) == before


@pytest.mark.parametrize(
    "content",
    [
        '{"format": 1, "shards": {"shards-00000001/0000": 1}}',
        '{"format": 1, "shards": "shards-00000001/0000"}',
        '{"format": 1, "shards": [1]}',
        '{"format": 1, "shards": ["shards-00000001/0000", "shards-00000001/0000"]}',
        "[" * 100_000,
    ],
)
def test_a_list_of_shards_of_another_shape_is_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / SHARDS).write_text(content)
    assert_refused(run_cli("index", "info", tmp_path), "is damaged: its shards.json cannot be read")


@pytest.mark.parametrize(
    "change",
    [
        {"items": "a"},
        {"items": -1},
        {"generation": 1.0},
        {"dimension": True},
        {"parameters": [1]},
        {"parameters": {"nprobe": "4"}},
        {"sizes": []},
        {"files": []},
        {"factory": 1},
        {"trials": [1]},
        {"segments": [["vectors-00000001.npy"]]},
        {"version": None},
        None,
    ],
)
def test_a_manifest_of_another_shape_is_damage(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, change: dict[str, object] | None
) -> None:
    out = tmp_path / "index"
    build_index(cut_images(gallery, 0, 2), small_model, out)
    path = name_generation(out, 1) / MANIFEST
    path.write_text("[" * 100_000 if change is None else json.dumps(json.loads(path.read_text()) | change))
    assert (out / CURRENT).exists()
    with pytest.raises(IndexFolderError, match=r"is damaged: its manifest\.json cannot be read"):
        read_manifest(out)


def test_images_of_an_address_are_removed_by_their_paths(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, out = f"file://{gallery.root}", tmp_path / "index"
    build_index(open_images(url), small_model, out, BuildOptions(source=url))
    monkeypatch.chdir(gallery.root)  # files of the same names lie here
    for path, count in (("cat/00.png", 1), (f"{url}/dog/01.png", 1), (f"{url}/cat/", 19), ("./dog/", 19)):
        if count == 19 and "dog" in path:
            add_images(out, [str(write_gallery(tmp_path / "more", [(Path(gallery.root) / "cat/00.png").read_bytes()]))])
        assert remove_items(out, Selection((path,))).removed == count
    for path in ("cat/00.png", f"{url}/cat", "memory://cat"):
        with pytest.raises(InputError, match="has no image"):
            remove_items(out, Selection((path,)))
    with pytest.raises(InputError, match=f"the gallery {url} is an address, where --missing does not look"):
        remove_items(out, Selection(missing=True))
    for source in (None, url):
        with pytest.raises(InputError, match=f"{url} is an address, which 'index sync' does not follow"):
            sync_folder(out, source)


def test_ctrl_c_tells_how_much_of_the_embedding_is_kept(
    tmp_path: Path, gallery: FolderSet, small_model: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(images: ImageSet, chunks: list[Chunk], model: EmbeddingSession, folder: Path, **_: object) -> None:
        part = cut_images(images, chunks[0].start, chunks[0].stop)
        write_chunk(folder, chunks[0], part, embed_files(part, model), model_sha256=model.sha256, node="here")
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "start_ray", lambda _: nullcontext())
    monkeypatch.setattr(building, "embed_chunks", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        build_on_cluster(gallery, small_model, tmp_path / "out", BuildOptions(), Spread(chunk_images=8))
    total = len(plan_chunks(gallery, 8, ""))
    assert caught.value.__notes__ == [f"1 of {total} chunks are embedded and kept: the same command goes on from there"]
