"""Time of `indistill search` from a cold shell, against a bare script that does the same and nothing else.

    python -m benchmarks.cold_search --json cold_search.json

The index holds 10,000 random JPEGs of 32x32 pixels, embedded by an untrained paper:cnn-s; all of it is made in a
temporary folder. Whole processes are timed, from start to exit, in turn and by the same interpreter; one pair goes
before, untimed, so that the files are in the system's cache. Every process must find the same image first.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.data.sets import open_folder
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.retrieval.store.build import build_index
from indistill.retrieval.store.generations import MODEL
from indistill.runs.config import load_recipe

SIDE, QUERY_SIDE = 32, 256
COARSE = 4  # random colours in a row of an image, so that images differ by more than noise
PARITY_IMAGES = 32
BARE = '''\
"""Prints the hits of one query: model, index and paths by hand, no checks."""

import sqlite3
import sys

import faiss
import numpy as np
import onnxruntime
from PIL import Image

folder, query, k, side = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
generation = f"{folder}/generations/00000001"
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
index = faiss.read_index(f"{generation}/index.faiss")
with Image.open(query) as image:
    pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
vector = session.run(None, {"image": pixels[None]})[0]
scores, ids = index.search(vector, k)
connection = sqlite3.connect(f"{generation}/catalogue.sqlite")
print(query)
for rank, (i, score) in enumerate(zip(ids[0].tolist(), scores[0].tolist()), start=1):
    path = connection.execute("SELECT path FROM items WHERE id = ?", (i,)).fetchone()[0]
    print(rank, f"{score:.4f}", i, path)
'''


def build_gallery(folder: Path, count: int) -> Path:
    """Writes the gallery and returns the query: its middle image, enlarged."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for i, colours in enumerate(generator.integers(0, 256, (count, COARSE, COARSE, 3), dtype=np.uint8)):
        image = Image.fromarray(colours).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:05d}.jpg", quality=90)
        if i == count // 2:
            query = image.resize((QUERY_SIDE, QUERY_SIDE), Image.Resampling.BICUBIC)
    path = folder.with_name("query.jpg")
    query.save(path, quality=90)
    return path


def build_searched(folder: Path, images: int) -> tuple[Path, Path]:
    """Makes student, gallery and index below a folder, and returns the index and the query."""
    query = build_gallery(folder / "gallery", images)
    gallery = open_folder(folder / "gallery", "gallery")
    preprocessing = load_recipe("cifar10").preprocessing
    torch.manual_seed(0)
    pixels = np.stack([preprocessing.resize(gallery.read(i)) for i in range(min(PARITY_IMAGES, images))])
    export_onnx(load_network("paper:cnn-s"), preprocessing, pixels, folder / MODEL)
    build_index(gallery, EmbeddingSession(folder / MODEL), folder / "index")
    return folder / "index", query


def time_process(command: list[str]) -> tuple[float, str]:
    """Returns the seconds of a process from start to exit, and the path of its first hit."""
    started = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds, done.stdout.splitlines()[1].split()[-1]  # the first line names the query


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="in the gallery (10000)")
    parser.add_argument("--rounds", type=int, default=10, help="timed pairs of processes (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory(prefix="cold-search-") as temporary:
        folder = Path(temporary)
        index, query = build_searched(folder, arguments.images)
        script = folder / "bare.py"
        script.write_text(BARE, encoding="utf-8")
        commands = {
            "ours": [sys.executable, "-m", "indistill.cli.main", "search", str(index), str(query), "-k", "10"],
            "bare": [sys.executable, str(script), str(index), str(query), "10", str(SIDE)],
        }
        found = {time_process(command)[1] for command in commands.values()}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                seconds, path = time_process(command)
                times[name].append(seconds)
                found.add(path)
    assert len(found) == 1, f"the first hits differ: {', '.join(sorted(found))}"

    ratio = measure_spread([ours / bare for ours, bare in zip(times["ours"], times["bare"], strict=True)])
    print(f"one query, {arguments.images:,} images, whole process, {arguments.rounds} rounds; first hit {found.pop()}")
    print(f"  indistill search  {1e3 * median(times['ours']):8.1f} ms (median)")
    print(f"  bare script       {1e3 * median(times['bare']):8.1f} ms (median)")
    print(f"  ours / bare       {format_spread(ratio)} (min / median / max of the pairs)")
    report_machine(machine)
    figures = {
        "benchmark": "cold_search",
        "settings": {key: value for key, value in vars(arguments).items() if key != "json"},
        "ours_s": measure_spread(times["ours"]),
        "bare_s": measure_spread(times["bare"]),
        "ratio_ours_to_bare": ratio,
        "rounds_s": times,
    }
    write_figures(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
