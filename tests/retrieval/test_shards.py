"""A folder of shards answers as one index of all its images, here with all of them opened in this process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indistill.data.sets import ImageSet
from indistill.data.specs import open_images
from indistill.errors import IndexFolderError, IndistillError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.cluster.chunks import cut_images, gather_chunks, plan_chunks, read_chunk, write_chunk
from indistill.retrieval.cluster.shards import write_shards
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index import Index
from indistill.retrieval.index_types.types import FaissIndex, add_to_faiss, train_faiss
from indistill.retrieval.opening import describe_index, open_index, verify_any
from indistill.retrieval.search import SearchOptions, search_images
from indistill.retrieval.store.build import BuildOptions, IndexPart, IndexType, build_index, write_index
from indistill.retrieval.store.changes import add_images, sync_folder
from indistill.retrieval.store.generations import SHARDS, lock_index
from indistill.retrieval.where import parse_where
from tests.cli.calls import assert_refused, run_cli, succeed
from tests.retrieval.conftest import write_gallery

KIND = IndexType("IVF4,SQ8", {"nprobe": 4})  # its scores are not those of the stored vectors


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, pictures: list[bytes]) -> ImageSet:
    folder = write_gallery(tmp_path_factory.mktemp("images") / "gallery", pictures)
    (folder / "cat" / "twice.png").write_bytes(pictures[0])
    (folder / "cat" / "broken.png").write_bytes(b"no image")
    return open_images(str(folder))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, gallery: ImageSet, small_model: EmbeddingSession) -> Path:
    out = tmp_path_factory.mktemp("single") / "index"
    build_index(gallery, small_model, out, BuildOptions(lambda _: KIND))
    return out


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, gallery: ImageSet, small_model: EmbeddingSession) -> Path:
    return write_sharded(tmp_path_factory.mktemp("sharded") / "index", gallery, small_model)


def write_sharded(out: Path, gallery: ImageSet, model: EmbeddingSession, kind: IndexType = KIND) -> Path:
    """Writes three shards, of which the last has no cat."""
    embedded = embed_files(gallery, model)
    bounds = [0, 9, 21, len(embedded.files)]

    def make(factory: str, vectors: np.ndarray, ids: np.ndarray) -> FaissIndex:
        index = train_faiss(factory, embedded.vectors)
        add_to_faiss(index, vectors, ids)
        return index

    names = []
    for number in range(3):
        rows = slice(bounds[number], bounds[number + 1])
        names.append(f"shards-00000001/{number:04d}")
        (out / names[-1]).mkdir(parents=True)
        skipped = embedded.skipped if number == 0 else []
        part = replace(embedded, files=embedded.files[rows], vectors=embedded.vectors[rows], skipped=skipped)
        with lock_index(out / names[-1], create=True):
            ids = IndexPart("", bounds[number] + 1, (number + 1) * 2**40, make)
            write_index(out / names[-1], gallery, model, part, kind, ids)
    write_shards(out, names)
    return out


@pytest.mark.parametrize("where", [None, "label = 'cat'", "label = 'dog'", "size > 0", "id = 3", "path = 'none'"])
@pytest.mark.parametrize("rerank", [0, 7])
def test_hits_are_those_of_one_index(single: Path, sharded: Path, where: str | None, rerank: int) -> None:
    condition = None if where is None else parse_where(where)
    with Index(single) as one, open_index(sharded) as parts:
        queries = one.find_vectors([1, 20, 41])
        for k in (1, 5, 100):
            wanted = one.search(queries, k, where=condition, rerank=rerank)
            found = parts.search(queries, k, where=condition, rerank=rerank)
            assert [[(h.id, h.path, h.label) for h in hits] for hits in found] == [
                [(h.id, h.path, h.label) for h in hits] for hits in wanted
            ]
            for hits, others in zip(found, wanted, strict=True):
                np.testing.assert_allclose([h.score for h in hits], [h.score for h in others], atol=1e-6)


def test_the_same_lists_are_probed(tmp_path: Path, gallery: ImageSet, small_model: EmbeddingSession) -> None:
    kind = replace(KIND, parameters={"nprobe": 1})
    build_index(gallery, small_model, tmp_path / "single", BuildOptions(lambda _: kind))
    folder = write_sharded(tmp_path / "sharded", gallery, small_model, kind)
    with Index(tmp_path / "single") as one, open_index(folder) as parts:
        queries = one.find_vectors(np.arange(1, 42))
        wanted, found = (index.search_vectors(queries, 30) for index in (one, parts))
        assert (wanted[1] == -1).any()  # fewer than asked for, as only one list is probed
        np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)


def test_few_images_are_scored_exactly_by_their_number_in_all_shards(single: Path, sharded: Path) -> None:
    with Index(single) as one, open_index(sharded) as parts:
        for among in (np.array([2, 30]), np.arange(1, 12)):
            wanted, found = (index.search_vectors(one.find_vectors([5]), 50, among) for index in (one, parts))
            np.testing.assert_array_equal(found[1], wanted[1])
            np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [SearchOptions(exclude_self=True), SearchOptions(combine=True), SearchOptions(threshold=0.9, exclude_self=True)],
)
def test_a_search_of_files_and_ids_is_that_of_one_index(
    single: Path, sharded: Path, gallery: ImageSet, options: SearchOptions
) -> None:
    queries = [Path(gallery.root) / "cat" / "00.png", 30]
    wanted, found = (search_images(folder, queries, k=5, options=options) for folder in (single, sharded))
    assert found == wanted


def test_all_vectors_and_labels_come_by_id(single: Path, sharded: Path) -> None:
    with Index(single) as one, open_index(sharded) as parts:
        for mine, other in zip(parts.read_vectors(), one.read_vectors(), strict=True):
            assert np.array_equal(np.asarray(mine), np.asarray(other))
        assert [item.id for item in parts.list_items()] == list(range(1, 42))
        assert parts.has_labels()
        with pytest.raises(IndexFolderError, match="has no id 99"):
            parts.find_vectors([1, 99])


def test_the_commands_take_a_folder_of_shards(single: Path, sharded: Path) -> None:
    wanted, found = (succeed("evaluate", folder, "--leave-one-out", "--json").out for folder in (single, sharded))
    assert found.replace(str(sharded), str(single)) == wanted
    assert succeed("dedupe", sharded).out == succeed("dedupe", single).out
    assert "41 images" in succeed("index", "info", sharded).out
    assert "whole, 15 files and 41 images" in succeed("index", "verify", sharded).out
    assert_refused(run_cli("index", "compact", sharded), "is a folder of shards")
    assert_refused(run_cli("search", sharded, "--id", "99"), "id 99 is not in the index", "41 images")


def test_damage_of_a_shard_is_found(tmp_path: Path, gallery: ImageSet, small_model: EmbeddingSession) -> None:
    folder = write_sharded(tmp_path / "index", gallery, small_model)
    file = folder / "shards-00000001" / "0001" / "generations" / "00000001" / "index.faiss"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    (problem,) = verify_any(folder).problems
    assert problem.startswith("0001: index.faiss")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"format": 1, "shards": ["../else"]}', '{"format": 1, "shards": []}', "\xff"]
)
def test_a_list_of_shards_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / SHARDS).write_text(content, encoding="latin-1")
    with pytest.raises(IndexFolderError, match=r"its shards\.json cannot be read"):
        open_index(tmp_path)


def test_what_is_added_to_two_shards_has_different_ids(
    tmp_path: Path, gallery: ImageSet, small_model: EmbeddingSession, pictures: list[bytes]
) -> None:
    folder = write_sharded(tmp_path / "index", gallery, small_model)
    for shard in ("0000", "0001"):
        image = tmp_path / f"{shard}.png"
        image.write_bytes(pictures[3])
        add_images(folder / "shards-00000001" / shard, [str(image)])
    assert describe_index(folder).items == 43
    with open_index(folder) as parts:
        assert len({item.id for item in parts.list_items()}) == 43


def test_a_shard_does_not_follow_the_whole_gallery(sharded: Path) -> None:
    with pytest.raises(InputError, match="is a shard"):
        sync_folder(sharded / "shards-00000001" / "0000")


def test_chunks_come_back_as_they_were_written(
    tmp_path: Path, gallery: ImageSet, small_model: EmbeddingSession
) -> None:
    chunks = plan_chunks(gallery, 16)
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 16), (16, 32), (32, 42)]
    for chunk in chunks:
        part = cut_images(gallery, chunk.start, chunk.stop)
        made = embed_files(part, small_model)
        write_chunk(tmp_path, chunk, part, made, model_sha256=small_model.sha256, node="here")
        again = read_chunk(tmp_path, chunk, small_model.sha256)
        assert again is not None
        assert (again.files, again.skipped) == (made.files, made.skipped)
        np.testing.assert_array_equal(again.vectors, made.vectors)
    whole, half = (gather_chunks(tmp_path, chunks, small_model.sha256, *part) for part in ((), (10, 20)))
    assert len(whole.files) == 41
    assert half.files == whole.files[10:20]
    np.testing.assert_array_equal(half.vectors, whole.vectors[10:20])


def test_a_chunk_of_another_model_or_damaged_is_not_there(
    tmp_path: Path, gallery: ImageSet, small_model: EmbeddingSession
) -> None:
    (chunk,) = plan_chunks(gallery, 100)
    made = embed_files(gallery, small_model)
    write_chunk(tmp_path, chunk, gallery, made, model_sha256=small_model.sha256, node="here")
    assert read_chunk(tmp_path, chunk, "0" * 64) is None
    assert read_chunk(tmp_path, replace(chunk, fingerprint=""), small_model.sha256) is None
    file = tmp_path / "000000.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert read_chunk(tmp_path, chunk, small_model.sha256) is None
    with pytest.raises(IndistillError, match="have changed"):
        gather_chunks(tmp_path, [chunk], small_model.sha256)
