"""Builds and searches on a Ray cluster of two nodes; see `tests.retrieval.ray_nodes`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indistill.data.sets import ImageSet
from indistill.data.specs import open_images
from indistill.errors import DataError, IndexFolderError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.cluster.building import Spread, build_on_cluster
from indistill.retrieval.cluster.embedding import Work
from indistill.retrieval.cluster.sharded import ShardedIndex
from indistill.retrieval.cluster.shards import RayShards
from indistill.retrieval.index import Index
from indistill.retrieval.opening import open_index
from indistill.retrieval.store.build import BuildOptions, IndexType, build_index
from indistill.retrieval.store.generations import FAISS, PENDING_CHUNKS, name_generation
from indistill.retrieval.where import parse_where
from tests.cli.calls import MAIN, REPOSITORY, assert_refused, make_environment, run_cli, run_process, snapshot, succeed
from tests.miniatures import write_shard
from tests.retrieval.ray_nodes import TwoNodes

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'indistill[ray]'")
pytest.importorskip("ray.cluster_utils")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own, of sockets and processes
IMAGES, CHUNK = 240, 16
KIND = IndexType("IVF8,SQ8", {"nprobe": 3})


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", make_environment()["PYTHONPATH"])  # which the workers inherit
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = TwoNodes()
        try:
            yield started
        finally:
            started.close()


@pytest.fixture
def joined(nodes: TwoNodes) -> Iterator[TwoNodes]:
    """The cluster, which this process has joined."""
    nodes.wait()
    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield nodes
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("images") / "gallery", np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / ("cat", "dog", "owl")[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.NEAREST).save(path)
    (folder / "dog" / "100.png").write_bytes(b"no image")
    return open_images(str(folder))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, gallery: ImageSet, small_model: EmbeddingSession) -> Path:
    """Returns the index that one process builds."""
    out = tmp_path_factory.mktemp("local") / "index"
    build_index(gallery, small_model, out, BuildOptions(lambda _: KIND))
    return out


def build(gallery: ImageSet, model: EmbeddingSession, out: Path, shards: int | None = None, **given: Any) -> Work:
    options = BuildOptions(lambda _: KIND, given.pop("workers", 1), overwrite=out.exists())
    spread = Spread(None, shards, given.pop("embeddings", None), chunk_images=CHUNK, part_vectors=50)
    return build_on_cluster(gallery, model, out, options, spread, **given)[2]


def wait_for_actors() -> None:
    """Returns when an actor on each of the four CPUs has started, so that none comes too late for its share."""
    from ray._private.state import actors  # the public way needs Ray's dashboard

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if sum(actor["State"] == "ALIVE" for actor in actors().values()) == 4:
            time.sleep(1)  # for the answers that they have started to come in
            return
        time.sleep(0.1)


def read_nodes(folder: Path) -> list[str]:
    """Returns the node that embedded each chunk."""
    return [json.loads(path.read_text())["node"] for path in sorted(folder.glob("*.json"))]


def assert_same(folder: Path, local: Path) -> None:
    with Index(local) as one, open_index(folder) as other:
        assert [(i.id, i.path, i.label, i.sha256) for i in other.find_items(range(1, IMAGES + 1)).values()] == [
            (i.id, i.path, i.label, i.sha256) for i in one.find_items(range(1, IMAGES + 1)).values()
        ]
        ids, vectors, labels = one.read_vectors()
        other_ids, other_vectors, other_labels = other.read_vectors()
        np.testing.assert_array_equal(other_ids, ids)
        np.testing.assert_allclose(other_vectors, vectors, atol=1e-6)
        assert other_labels == labels
        wanted, found = (index.search_vectors(vectors, 20) for index in (one, other))
        np.testing.assert_array_equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
        assert (other.manifest.items, other.manifest.skipped) == (IMAGES - 1, 1)


def test_both_nodes_work_and_the_index_is_that_of_one_process(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, local: Path, tmp_path: Path
) -> None:
    out, kept = tmp_path / "index", tmp_path / "kept"
    done: list[int] = []

    def note(count: int) -> None:
        if not done:
            wait_for_actors()
        done.append(count)

    work = build(gallery, small_model, out, workers=None, embeddings=kept, on_progress=note)
    assert (work.embedded, work.known, sum(done)) == (IMAGES, 0, IMAGES)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    assert set(read_nodes(kept)) == alive == set(work.nodes)
    assert len(alive) == 2
    assert_same(out, local)
    succeed("index", "verify", out)
    assert not (out / PENDING_CHUNKS).exists()

    file = [name_generation(folder, 1) / FAISS for folder in (out, local)]
    assert file[0].stat().st_size == file[1].stat().st_size

    again = build(gallery, small_model, out, embeddings=kept)
    assert (again.embedded, again.known) == (0, IMAGES)
    assert_same(out, local)


def test_what_has_changed_since_is_embedded_again(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, local: Path, tmp_path: Path
) -> None:
    folder, kept = tmp_path / "gallery", tmp_path / "kept"
    shutil.copytree(gallery.root, folder)
    images = open_images(str(folder))
    build(images, small_model, tmp_path / "index", embeddings=kept)
    (folder / "cat" / "000.png").write_bytes((folder / "owl" / "002.png").read_bytes())
    damaged = kept / "000005.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (kept / "000007.json").unlink()
    work = build(images, small_model, tmp_path / "index", embeddings=kept)
    assert (work.embedded, work.known) == (3 * CHUNK, IMAGES - 3 * CHUNK)
    (folder / "dog" / "100.png").write_bytes((folder / "owl" / "002.png").read_bytes())
    assert build(images, small_model, tmp_path / "index", embeddings=kept).embedded == CHUNK
    with Index(tmp_path / "index") as index:
        assert index.manifest.items == IMAGES
        first, copy, original = (
            index.catalogue.find_paths([p])[p].id for p in ("cat/000.png", "dog/100.png", "owl/002.png")
        )
        vectors = index.find_vectors([first, copy, original])
    np.testing.assert_allclose(vectors[:2], vectors[[2, 2]], atol=1e-6)


def test_embeddings_of_another_gallery_are_refused_and_stay(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    build(gallery, small_model, tmp_path / "index", embeddings=kept)
    before = snapshot(kept)
    other = open_images(str(Path(gallery.root) / "cat"))
    with pytest.raises(IndexFolderError, match=f"are of another gallery, {gallery.root}"):
        build(other, small_model, tmp_path / "other", embeddings=kept)
    assert not (tmp_path / "other").exists()
    assert snapshot(kept) == before


def test_a_type_that_is_refused_leaves_the_embeddings_for_the_next_try(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index"
    spread = Spread(chunk_images=CHUNK, part_vectors=50)
    with pytest.raises(InputError, match="512 lists"):
        build_on_cluster(gallery, small_model, out, BuildOptions(lambda _: IndexType("IVF512,Flat"), 1), spread)
    assert_refused(run_cli("index", "info", out), "is not complete")
    work = build_on_cluster(gallery, small_model, out, BuildOptions(lambda _: KIND, 1), spread)[2]
    assert (work.embedded, work.known) == (0, IMAGES)
    assert_same(out, local)


def test_shards_are_searched_on_both_nodes_as_one_index(
    joined: TwoNodes,
    gallery: ImageSet,
    small_model: EmbeddingSession,
    local: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "shards"
    build(gallery, small_model, out, shards=3)
    assert_same(out, local)  # in this process
    succeed("index", "verify", out)
    monkeypatch.setenv("RAY_ADDRESS", joined.address)
    assert_same(out, local)
    query = Path(gallery.root) / "cat" / "003.png"
    with open_index(out) as index:
        assert isinstance(index, ShardedIndex)
        assert isinstance(index._shards, RayShards)
        assert len(set(index._shards.list_nodes())) == 2
    for options in ("-k 5 --id 7 --exclude-self --rerank 20", "--id 1 --combine --threshold 0.5"):
        wanted, found = (
            json.loads(succeed("search", folder, query, *options.split(), "--json").out) for folder in (local, out)
        )
        assert list_hits(found) == list_hits(wanted)
    exact = parse_where("label = 'cat' and size > 0")
    with Index(local) as one, open_index(out) as parts:
        ids = one.find_ids(exact)
        np.testing.assert_array_equal(parts.find_ids(exact), ids)
    wanted, found = (
        json.loads(succeed("evaluate", folder, "--leave-one-out", "--json").out) for folder in (local, out)
    )
    assert list_numbers(found) == pytest.approx(list_numbers(wanted), abs=1e-6)
    assert len(list_numbers(wanted)) > 20

    with open_index(out) as parts:
        before = parts.search_vectors(np.eye(64, dtype=np.float32)[:2], 3)
        joined.kill_second()
        after = parts.search_vectors(np.eye(64, dtype=np.float32)[:2], 3)
        joined.renew_second()
    np.testing.assert_array_equal(after[1], before[1])


def list_hits(answers: Any) -> list[tuple[object, ...]]:
    return [(hit["rank"], hit["id"], hit["path"]) for query in answers["queries"] for hit in query["hits"]]


def list_numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [
            number for part in (value.values() if isinstance(value, dict) else value) for number in list_numbers(part)
        ]
    return [float(value)] if isinstance(value, int | float) else []


def test_shards_that_are_replaced_stay_until_the_new_ones_are_there(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, local: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    build(gallery, small_model, out, shards=2)
    with pytest.raises(InputError, match="512 lists"):
        build_on_cluster(
            gallery,
            small_model,
            out,
            BuildOptions(lambda _: IndexType("IVF512,Flat"), 1, overwrite=True),
            Spread(shards=3, embeddings=tmp_path / "kept", chunk_images=CHUNK),
        )
    assert_same(out, local)
    build(gallery, small_model, out, shards=3, embeddings=tmp_path / "kept")
    assert_same(out, local)
    assert sorted(path.name for path in out.iterdir()) == ["lock", "shards-00000001", "shards-00000002", "shards.json"]


def test_a_node_that_dies_in_the_middle_changes_nothing(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, local: Path, tmp_path: Path
) -> None:
    kept, second = tmp_path / "kept", joined.second
    killed: list[int] = []

    def kill(_: int) -> None:
        if len(read_nodes(kept)) == 1:
            wait_for_actors()
        if not killed and second in read_nodes(kept):
            killed.append(len(read_nodes(kept)))
            joined.kill_second()

    try:
        work = build(gallery, small_model, tmp_path / "index", workers=None, embeddings=kept, on_progress=kill)
    finally:
        joined.renew_second()
    assert killed
    assert killed[0] < IMAGES // CHUNK
    assert work.embedded == IMAGES
    assert work.nodes[second] < sum(work.nodes.values())
    assert_same(tmp_path / "index", local)


def test_a_build_that_is_killed_goes_on(
    nodes: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, tmp_path: Path
) -> None:
    rng, folder = np.random.default_rng(3), tmp_path / "gallery"
    folder.mkdir()
    for number in range(2600):  # three chunks of the command's size
        (folder / f"{number:04d}.ppm").write_bytes(b"P6 32 32 255\n" + rng.bytes(3072))
    arguments = ["index", "build", folder, "-m", small_model.path, "-o", tmp_path / "index", "--engine", "ray"]
    arguments += ["--address", nodes.address, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=make_environment(),
        cwd=REPOSITORY,
        start_new_session=True,
    )
    chunks = tmp_path / "index" / PENDING_CHUNKS
    deadline = time.monotonic() + 60
    while not list(chunks.glob("*.json")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(chunks.glob("*.json")))
    assert 1 <= there < 3
    result = run_process(*arguments)
    assert result.code == 0, result.err
    assert f"embedded {2600 - there * 1024:,} images on 1 nodes, {there * 1024:,} were embedded before" in result.err
    assert "2,600 images" in result.out


@pytest.mark.parametrize("spec", ["manifest", "tar", "address"])
def test_other_data_specs_give_what_one_process_does(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, tmp_path: Path, spec: str
) -> None:
    names = list(gallery.names)[::5]
    if spec == "manifest":
        path = tmp_path / "some.csv"
        path.write_text("path,label\n" + "".join(f"{Path(gallery.root) / name},{name[:3]}\n" for name in names))
    elif spec == "address":
        path = f"file://{gallery.root}"
    else:
        path = tmp_path / "tars"
        for number, part in enumerate((names[:20], names[20:])):
            files = {name: (Path(gallery.root) / name).read_bytes() for name in part}
            labels = {f"{Path(name).with_suffix('.cls')}": name[:3].encode() for name in part}
            write_shard(path / f"{number}.tar", files | labels)
    images = open_images(str(path))
    build_index(images, small_model, tmp_path / "local", BuildOptions())
    build_on_cluster(images, small_model, tmp_path / "ray", BuildOptions(workers=1), Spread(chunk_images=CHUNK))
    with Index(tmp_path / "local") as one, Index(tmp_path / "ray") as other:
        assert list(other.catalogue.list_items()) == list(one.catalogue.list_items())
        np.testing.assert_allclose(other.read_vectors()[1], one.read_vectors()[1], atol=1e-6)
        assert len({item.label for item in one.catalogue.list_items()}) == 3


def test_images_that_a_node_does_not_have_are_refused(
    joined: TwoNodes, gallery: ImageSet, small_model: EmbeddingSession, tmp_path: Path
) -> None:
    shutil.copytree(gallery.root, tmp_path / "gone")
    images = open_images(str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(
        DataError, match=r"^the Ray node \S+ has no .*gone: images must lie at the same path on each node$"
    ):
        build(images, small_model, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_refused(
    gallery: ImageSet, small_model: EmbeddingSession, tmp_path: Path, address: str
) -> None:
    arguments = ["index", "build", gallery.root, "-m", small_model.path, "-o", tmp_path / "index", "--engine", "ray"]
    assert_refused(run_cli(*arguments, "--address", address), "Ray cluster at " + address)
    assert not (tmp_path / "index").exists()
