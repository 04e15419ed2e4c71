"""What a living index costs: search over raw FAISS, opening, following an unchanged folder, and a small addition.

python -m benchmarks.index_speed --vectors 1000000 --files 50000 --json benchmarks/index_speed.json

The large index is written from random unit vectors of 128 values with a catalogue of as many images, which nobody has;
the addition embeds 100 real files with the index's model and is compared with embedding them alone.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np

from benchmarks.index_kills import draw_picture
from indistill.data.sets import open_folder
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.progress import show_progress
from indistill.retrieval.index import Index
from indistill.retrieval.index_types.types import make_faiss
from indistill.retrieval.store.build import build_index, name_segment, write_faiss
from indistill.retrieval.store.catalogue import NewItem, edit_catalogue
from indistill.retrieval.store.changes import add_images, sync_folder
from indistill.retrieval.store.generations import (
    CATALOGUE,
    FAISS,
    MODEL,
    SKIPPED,
    Manifest,
    commit_generation,
    draft_generation,
    lock_index,
    write_skipped,
)
from indistill.retrieval.store.segments import write_segment

ROUNDS = 5


def write_large_index(folder: Path, vectors: Embeddings, model: EmbeddingSession, root: Path) -> None:
    folder.mkdir()
    with lock_index(folder, create=True), draft_generation(folder) as draft:
        shutil.copyfile(model.path, draft / MODEL)
        write_skipped(draft / SKIPPED, [])
        with edit_catalogue(draft / CATALOGUE) as catalogue:
            items = [NewItem(f"{i:09d}.jpg", None, f"{i:064x}", 50_000, i) for i in range(len(vectors))]
            ids = np.array(catalogue.add(items), dtype=np.int64)
        write_segment(draft / name_segment(1), ids, vectors)
        write_faiss(make_faiss("Flat", vectors, ids), draft / FAISS)
        manifest = Manifest(
            len(ids),
            vectors.shape[1],
            "IDMap,Flat",
            "inner_product",
            model.sha256,
            0,
            str(root),
            0,
            (name_segment(1),),
            "0",
        )
        commit_generation(draft, manifest)


def time_call(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def compare_search(index: Path, raw: faiss.Index, dimension: int) -> dict[str, float]:
    """Returns ratios and differences of `Index.search_vectors` and FAISS alone, one thread, rounds by turns."""
    queries = draw_vectors(256, dimension, 1)
    figures = {}
    with Index(index) as opened:
        faiss.omp_set_num_threads(1)
        for batch in (1, 256):
            ours, theirs = [], []
            for i in range(ROUNDS * (20 if batch == 1 else 1)):
                part = queries[i % 200 : i % 200 + 1] if batch == 1 else queries
                theirs.append(time_call(lambda part=part: raw.search(part, 10)))
                ours.append(time_call(lambda part=part: opened.search(part, 10)))
            figures[f"faiss_ms_batch_{batch}"] = 1e3 * median(theirs)
            figures[f"more_ms_batch_{batch}"] = 1e3 * median(a - b for a, b in zip(ours, theirs, strict=True))
            figures[f"speed_ratio_batch_{batch}"] = median(b / a for a, b in zip(ours, theirs, strict=True))
    return figures


def draw_vectors(count: int, dimension: int, seed: int) -> Embeddings:
    rows = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def make_model(folder: Path) -> EmbeddingSession:
    import timm
    import torch

    from indistill.export.onnx import export_onnx
    from indistill.models.loading import load_network
    from indistill.preprocess import Preprocessing

    torch.manual_seed(0)
    assert timm.__version__
    pixels = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    export_onnx(load_network("timm:resnet18"), Preprocessing(224), pixels, folder / "model.onnx")
    return EmbeddingSession(folder / "model.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, float] = {"vectors": options.vectors, "files": options.files}
    folder = Path(tempfile.mkdtemp(prefix="index-speed-"))
    try:
        import random

        source = random.Random(0)
        model = make_model(folder)
        dimension = model.artefact.embedding_dim
        searched = draw_vectors(100_000, 128, 0)
        # Search on 100,000 x 128; the model plays no part in it.
        write_large_index(folder / "small", searched, model, folder)
        figures |= compare_search(folder / "small", make_faiss("Flat", searched, np.arange(len(searched))), 128)

        gallery = folder / "gallery"
        gallery.mkdir()
        picture = draw_picture(source)
        with show_progress("writing", options.files, "files") as advance:
            for number in range(options.files):
                (gallery / f"{number:06d}.png").write_bytes(picture)
                advance(1)
        build_index(open_folder(gallery, "g"), model, folder / "followed")
        figures["sync_unchanged_s"] = median(time_call(lambda: sync_folder(folder / "followed")) for _ in range(ROUNDS))

        extra = folder / "extra"
        extra.mkdir()
        for number in range(100):
            (extra / f"{number}.png").write_bytes(draw_picture(source))
        write_large_index(folder / "large", draw_vectors(options.vectors, dimension, 3), model, folder)
        figures["open_s"] = median(time_call(lambda: Index(folder / "large").close()) for _ in range(ROUNDS))
        figures["embed_100_s"] = time_call(lambda: model.embed_images(sorted(extra.iterdir())))
        figures["add_100_s"] = time_call(lambda: add_images(folder / "large", [str(extra)]))
        figures["add_to_embed_ratio"] = figures["add_100_s"] / figures["embed_100_s"]
    finally:
        shutil.rmtree(folder)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
