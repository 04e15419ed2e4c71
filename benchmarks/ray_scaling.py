"""How a build on a Ray cluster grows: embedding with 1, 2 and 4 workers, and indexing from 10^4 to 10^6 vectors.

python -m benchmarks.ray_scaling --model student.onnx --images 20000 --vectors 10000,100000,1000000

Images are noise of the model's size in PNG files; workers are virtual CPUs of one node, so that more of them than the
machine has cores bring nothing. Vectors are random unit vectors of the model's dimension around 1,000 centres, in
chunks as a build writes them; the index has 4 lists for each root of their number. They are read back from the chunks,
the index is trained, filled by one process and by tasks in eight parts, and written.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine, report_machine, write_figures
from indistill.data.sets import FolderSet, open_folder
from indistill.export.session import EmbeddingSession
from indistill.retrieval.cluster.building import Spread, add_in_tasks, build_on_cluster
from indistill.retrieval.cluster.chunks import gather_chunks, plan_chunks, write_chunk
from indistill.retrieval.cluster.runtime import require_ray
from indistill.retrieval.embed import EmbeddedImages, ImageFile
from indistill.retrieval.index_types.types import add_to_faiss, train_faiss
from indistill.retrieval.store.build import BuildOptions, IndexPart, IndexType, build_index, write_index
from indistill.retrieval.store.generations import lock_index

WORKERS = (1, 2, 4)
CENTRES, CHUNK = 1000, 8192


def measure(work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that a piece of work takes, and its result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def write_images(folder: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, format="PNG")
        path.write_bytes(stream.getvalue())


def time_embedding(model: EmbeddingSession, count: int, folder: Path) -> dict[str, float]:
    write_images(folder / "images", count, model.artefact.preprocessing.image_size)
    gallery = open_folder(folder / "images", "images")
    seconds, _ = measure(lambda: build_index(gallery, model, folder / "local"))
    figures = {"one process": seconds}
    for workers in WORKERS:
        require_ray().init("local", num_cpus=workers, log_to_driver=False, logging_level="ERROR")
        build = partial(build_on_cluster, gallery, model, folder / f"ray{workers}", BuildOptions(), Spread())
        figures[f"Ray, {workers} workers"], _ = measure(build)
        require_ray().shutdown()
    return figures


def time_indexing(model: EmbeddingSession, count: int, folder: Path) -> dict[str, float]:
    rng, dimension = np.random.default_rng(0), model.artefact.embedding_dim
    vectors = rng.standard_normal((CENTRES, dimension), dtype=np.float32)[rng.integers(0, CENTRES, count)]
    vectors += rng.standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"{i:09d}.jpg" for i in range(count)]
    gallery = FolderSet("none", folder, names, (), np.full(count, -1))
    chunks = plan_chunks(gallery, CHUNK)

    def write() -> None:
        for chunk in chunks:
            rows = slice(chunk.start, chunk.stop)
            files = [ImageFile(name, f"{i:064x}", 50_000, i) for i, name in enumerate(names[rows], start=chunk.start)]
            part = FolderSet("none", folder, names[rows], (), gallery.labels[rows])
            embedded = EmbeddedImages(files, vectors[rows], [])
            write_chunk(folder, chunk, part, embedded, model_sha256=model.sha256, node="none")

    kind = IndexType(f"IVF{4 * int(count**0.5)},SQ8")
    figures = {"write chunks": measure(write)[0]}
    figures["read chunks"], embedded = measure(lambda: gather_chunks(folder, chunks, model.sha256))
    figures["train"], empty = measure(lambda: train_faiss(kind.factory, embedded.vectors))
    ids = np.arange(1, count + 1)
    for workers in WORKERS:
        require_ray().init("local", num_cpus=workers, log_to_driver=False, logging_level="ERROR")
        fill = partial(add_in_tasks, empty, -(-count // 8), kind.factory, embedded.vectors, ids)
        figures[f"add, {workers} workers"], index = measure(fill)
        require_ray().shutdown()
    figures["add, one process"], _ = measure(lambda: add_to_faiss(empty, embedded.vectors, ids))
    (folder / "index").mkdir()
    with lock_index(folder / "index", create=True):
        part = IndexPart(make=lambda *_: index)
        figures["write index"], _ = measure(lambda: write_index(folder / "index", gallery, model, embedded, kind, part))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--vectors", default="10000,100000,1000000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine, model = describe_machine(), EmbeddingSession(options.model)
    figures: dict[str, object] = {"images": options.images}
    with tempfile.TemporaryDirectory() as folder:
        figures["embedding_s"] = time_embedding(model, options.images, Path(folder))
        print(f"{options.images:,} images: {format_seconds(figures['embedding_s'])}", flush=True)
    for count in map(int, options.vectors.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            figures[f"indexing_{count}_s"] = found = time_indexing(model, count, Path(folder))
            print(f"{count:,} vectors: {format_seconds(found)}", flush=True)
    report_machine(machine)
    write_figures(options.json, machine, figures)


def format_seconds(figures: Any) -> str:
    return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in figures.items())


if __name__ == "__main__":
    main()
