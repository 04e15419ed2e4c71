"""Images to vectors: how near `embed_files` comes to what decoding and inference allow, and what a `DataLoader` gives.

    python -m benchmarks.embedding --photos FOLDER [--images 250] [--rounds 3] [--json FILE]

A network with random weights is exported with preprocessing outside of the graph's resize, so that all embed the same
pixels. Four ways are taken in turn, in several rounds, all on all cores:

- decode: the photographs are read, decoded and resized by threads, and thrown away;
- inference: the session embeds pixels that lie in memory, in the batches of `embed_files`;
- embed_files: what `indistill index build` does, hashing included;
- DataLoader: a worker process of torch for each core decodes and resizes with Pillow, the same session embeds.

Decoding and inference share the cores, so that together they allow 1 / (1 / decode + 1 / inference) images/s. On a
machine that does other things too, the ratios of one round are comparable, and the processor time is better still.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from benchmarks.streaming import repeat_photos
from indistill.data.ahead import count_decoders, map_ahead
from indistill.data.sets import FolderSet, open_folder
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.images import read_pixels
from indistill.models.loading import load_network
from indistill.preprocess import PixelArray, Preprocessing
from indistill.retrieval.embed import AHEAD, BATCH_SIZE, embed_files

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WAYS = ("decode", "inference", "embed_files", "DataLoader")


class Photos(Dataset[PixelArray]):
    """What users of a `DataLoader` write: open, convert, resize."""

    def __init__(self, paths: list[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.preprocessing = paths, preprocessing

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> PixelArray:
        with Image.open(self.paths[position]) as image:
            return self.preprocessing.resize(image.convert("RGB"))


def stack(images: list[PixelArray]) -> PixelArray:
    return np.stack(images)


def read_all(images: FolderSet, preprocessing: Preprocessing) -> PixelArray:
    """Returns all images (N, S, S, 3), decoded by threads."""

    def read(name: str) -> PixelArray:
        return read_pixels((images.folder / name).read_bytes(), preprocessing)

    return np.stack(list(map_ahead(read, images.names, workers=count_decoders(), ahead=AHEAD)))


def embed_pixels(session: EmbeddingSession, pixels: PixelArray) -> NDArray[np.float32]:
    """Returns the vectors of pixels in memory."""
    batches = range(0, len(pixels), BATCH_SIZE)
    return np.concatenate([session.embed_pixels(pixels[start : start + BATCH_SIZE]) for start in batches])


def embed_loaded(session: EmbeddingSession, images: FolderSet) -> NDArray[np.float32]:
    """Returns the vectors by a `DataLoader` with a process for each core."""
    photos = Photos([images.folder / name for name in images.names], session.artefact.preprocessing)
    workers = len(os.sched_getaffinity(0))
    loader: DataLoader[PixelArray] = DataLoader(photos, BATCH_SIZE, num_workers=workers, collate_fn=stack)
    return np.concatenate([session.embed_pixels(pixels) for pixels in loader])


def measure_process_s() -> float:
    """Returns the processor time of this process and its children, living and ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def time_way(work: Callable[[], object], images: int) -> tuple[float, float]:
    """Returns images/s and milliseconds of processor time for each image."""
    processor, started = measure_process_s(), perf_counter()
    work()
    return images / (perf_counter() - started), (measure_process_s() - processor) / images * 1000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=250, help="how many, by repetition (250)")
    parser.add_argument("--student", default="timm:resnet18", help="model spec (timm:resnet18)")
    parser.add_argument("--side", type=int, default=224, help="of the network's input, pixels (224)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    options, machine = parse_arguments(), describe_machine()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    processor_ms: dict[str, list[float]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as folder:
        images = open_folder(repeat_photos(options.photos, options.images, Path(folder) / "photos"), "photos")
        torch.manual_seed(0)
        model, preprocessing = Path(folder) / "student.onnx", Preprocessing(options.side, 0.875, MEAN, STD)
        example = np.random.default_rng(0).integers(0, 256, (2, options.side, options.side, 3), dtype=np.uint8)
        export_onnx(load_network(options.student), preprocessing, example, model)
        session, pixels = EmbeddingSession(model), read_all(images, preprocessing)
        ways: dict[str, Callable[[], object]] = {
            "decode": lambda: read_all(images, preprocessing),
            "inference": lambda: embed_pixels(session, pixels),
            "embed_files": lambda: embed_files(images, session),
            "DataLoader": lambda: embed_loaded(session, images),
        }
        vectors = embed_pixels(session, pixels[: 2 * BATCH_SIZE])  # warms the session up too
        for number in range(options.rounds):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                rate, spent = time_way(ways[way], len(images.names))
                rates[way].append(rate)
                processor_ms[way].append(spent)
        found = embed_files(images, session).vectors[: len(vectors)]
        if not np.allclose(found, vectors, atol=1e-5):
            raise SystemExit("embed_files gives other vectors than the session")
    rounds = list(zip(*(rates[way] for way in WAYS), strict=True))
    spent = list(zip(*(processor_ms[way] for way in WAYS), strict=True))
    ratios = {
        "embed_files / what decode and inference allow": [ours * (1 / d + 1 / i) for d, i, ours, _ in rounds],
        "embed_files / DataLoader": [ours / loader for _, _, ours, loader in rounds],
        "processor time: decode and inference / embed_files": [(d + i) / ours for d, i, ours, _ in spent],
        "processor time: DataLoader / embed_files": [loader / ours for _, _, ours, loader in spent],
    }
    spreads = {
        "images_per_s": {way: measure_spread(values) for way, values in rates.items()},
        "processor_ms": {way: measure_spread(values) for way, values in processor_ms.items()},
        "ratios": {name: measure_spread(values) for name, values in ratios.items()},
    }
    print(f"| {options.student} at {options.side} pixels, {len(images.names)} photographs | min / median / max |")
    print("|---|---|")
    for unit, title in (("images_per_s", ", images/s"), ("processor_ms", ", processor ms/image"), ("ratios", "")):
        for name, spread in spreads[unit].items():
            print(f"| {name}{title} | {format_spread(spread)} |")
    report_machine(machine)
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "photos")}
    write_figures(options.json, machine, {"benchmark": "embedding", "settings": settings, **spreads})


if __name__ == "__main__":
    main()
