"""How embedding and index building grow: with the number of images, of vectors, and of workers.

    python -m benchmarks.scaling --data IMAGES --model FILE.onnx [--json FILE]

- embedding: `embed_files`, as `indistill index build` calls it, on the first 1,000, 10,000 and all of the images; core
  time and time, per image.
- workers: the same on 5,000 images with 1, 2 and 4 threads that read and decode, and as many of the session.
- index: the type that `indistill plan` names for a recall of 0.95, made of 10^4, 10^5 and 10^6 clustered vectors and
  written, with the catalogue and the embeddings: core time. Beside it, how often more than n log n it grew.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from benchmarks.index_types import make_vectors
from benchmarks.machine import describe_machine, report_machine, write_figures
from indistill.data.sets import ImageSet, SampledSet
from indistill.data.specs import open_images
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.retrieval.capacity import count_lists, find_probing
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index_types.types import make_faiss
from indistill.retrieval.store.build import name_segment, write_faiss
from indistill.retrieval.store.catalogue import NewItem, edit_catalogue
from indistill.retrieval.store.segments import write_segment

RECALL, DIMENSION = 0.95, 128
WORKERS, SIZES, COUNTS = (1, 2, 4), (10**4, 10**5, 10**6), (1_000, 10_000, 100_000_000)
WORKER_IMAGES = 5_000


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Returns the time and the core time of something, in seconds."""
    process, started = psutil.Process(), time.perf_counter()
    before = sum(process.cpu_times()[:2])
    work()
    return {"s": time.perf_counter() - started, "core_s": sum(process.cpu_times()[:2]) - before}


def take(images: ImageSet, count: int) -> SampledSet:
    return SampledSet(images, range(min(count, len(images.names))))


def write_index(folder: Path, vectors: Embeddings) -> None:
    factory = f"IVF{count_lists(len(vectors))},{find_probing(RECALL).code}"
    ids = np.arange(1, len(vectors) + 1)
    with edit_catalogue(folder / "catalogue.sqlite") as catalogue:
        catalogue.add([NewItem(f"{i:09d}.jpg", None, f"{i:064x}", 50_000, i) for i in range(len(vectors))])
    write_segment(folder / name_segment(1), ids, vectors)
    write_faiss(make_faiss(factory, vectors, ids), folder / "index.faiss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="images, 10,000 or more")
    parser.add_argument("--model", type=Path, required=True, help="an exported file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments, machine = parser.parse_args(), describe_machine()
    images = open_images(arguments.data)
    figures: dict[str, dict[str, dict[str, float]]] = {"embedding": {}, "workers": {}, "index": {}}

    session = EmbeddingSession(arguments.model)
    embed_files(take(images, 200), session)  # warm
    print("| images embedded | core time of one | time of one |\n|---|---|---|")
    for count in sorted({len(take(images, count).names) for count in COUNTS}):
        found = measure(lambda count=count: embed_files(take(images, count), session))
        figures["embedding"][str(count)] = found
        print(f"| {count:,} | {1e3 * found['core_s'] / count:.3f} ms | {1e3 * found['s'] / count:.3f} ms |", flush=True)

    print(f"\n| workers, of {os.cpu_count()} cores | images/s | core time of an image |\n|---|---|---|")
    for workers in WORKERS:
        session, chosen = EmbeddingSession(arguments.model, threads=workers), take(images, WORKER_IMAGES)
        found = measure(
            lambda chosen=chosen, session=session, workers=workers: embed_files(chosen, session, workers=workers)
        )
        figures["workers"][str(workers)] = found
        count = len(chosen.names)
        print(f"| {workers} | {count / found['s']:,.0f} | {1e3 * found['core_s'] / count:.3f} ms |", flush=True)

    print("\n| vectors indexed | type | core time | times n log n |\n|---|---|---|---|")
    vectors = make_vectors(max(SIZES), DIMENSION, seed=0)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(lambda size=size, folder=folder: write_index(Path(folder), vectors[:size]))
        figures["index"][str(size)] = found
        least = figures["index"][str(min(SIZES))]["core_s"]
        kind = f"IVF{count_lists(size)},{find_probing(RECALL).code}"
        growth = found["core_s"] / least / (size * math.log(size) / min(SIZES) / math.log(min(SIZES)))
        print(f"| {size:,} | {kind} | {found['core_s']:.1f} s | {growth:.2f} |", flush=True)
    report_machine(machine)
    settings = {"data": arguments.data, "model": str(arguments.model), "recall": RECALL, "dimension": DIMENSION}
    write_figures(arguments.json, machine, {"benchmark": "scaling", "settings": settings, **figures})


if __name__ == "__main__":
    main()
