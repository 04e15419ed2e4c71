"""Photographs that are decoded while a student trains on them: how long a step takes beside decode and compute alone.

    python -m benchmarks.streaming --photos FOLDER [--student timm:resnet18] [--json FILE]

The photographs are repeated by links until there are --images of them. Three rates are taken, in turn, in several
rounds, each in a process of its own: decode, the batches drawn from disk and thrown away; compute, `indistill compress
--no-warm-up` with the images in memory; both, the same with `data.memory_limit_gb=0`, by which each image is decoded
when its turn comes. The first epoch of a run is not timed. Where decode and compute share the same cores, as on a
machine without a GPU, both at once cannot be faster than their times added up; that ratio is given beside the one with
the slower of the two.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.data.batches import Batches
from indistill.data.pixels import open_pixels
from indistill.data.specs import open_images
from indistill.runs.config import load_recipe

EPOCHS, BATCH = 3, 32


def repeat_photos(photos: Path, count: int, folder: Path) -> Path:
    """Returns a folder of `count` links to the photographs, each as often as any other but for one."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        raise SystemExit(f"{photos}: there are no photographs")
    folder.mkdir()
    for number in range(count):
        source = found[number % len(found)].resolve()
        (folder / f"{number:06d}{source.suffix}").symlink_to(source)
    return folder


def time_decoding(data: Path, side: int) -> float:
    """Returns images/s of batches that are drawn from disk and thrown away, in the second of two epochs."""
    recipe = load_recipe("default", {"data.image_size": side, "data.batch_size": BATCH})
    pixels = open_pixels(open_images(str(data)), recipe.preprocessing, lambda _: None, 0.0)
    batches = Batches(pixels, recipe.preprocessing, **recipe.batching, seed=0, device=torch.device("cpu"))
    for _ in range(2):
        started = perf_counter()
        images = sum(len(images) for images, _labels in batches.draw_epoch())
    return images / (perf_counter() - started)


def time_training(data: Path, out: Path, options: argparse.Namespace, limit: float) -> float:
    """Returns images/s of a training, the median of its epochs but the first."""
    command = [sys.executable, "-m", "indistill.cli.main", "compress", "--data", str(data), "--out", str(out)]
    command += ["--teacher", options.teacher, "--student", options.student, "--image-size", str(options.side)]
    command += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--no-warm-up", "--no-report", "--overwrite"]
    command += ["--set", f"data.memory_limit_gb={limit}", "--device", options.device]
    subprocess.run(command, check=True, capture_output=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(median(record["images_per_s"] for record in records[1:]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--images", type=int, default=1000, help="how many, by repetition (1000)")
    parser.add_argument("--side", type=int, default=128, help="of the images that are trained on, pixels (128)")
    parser.add_argument("--teacher", default="timm:resnet18", help="model spec (timm:resnet18)")
    parser.add_argument("--student", default="timm:mobilenetv3_small_050", help="(timm:mobilenetv3_small_050)")
    parser.add_argument("--device", default="auto", help="(auto)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    options, machine = parse_arguments(), describe_machine()
    rates: dict[str, list[float]] = {"decode": [], "compute": [], "both": []}
    with TemporaryDirectory() as folder:
        data = repeat_photos(options.photos, options.images, Path(folder) / "photos")
        for _ in range(options.rounds):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rates["decode"].append(process.submit(time_decoding, data, options.side).result())
            for name, limit in (("compute", 8.0), ("both", 0.0)):
                rates[name].append(time_training(data, Path(folder) / name, options, limit))
    rounds = [tuple(1 / rate for rate in triple) for triple in zip(*rates.values(), strict=True)]
    ratios = {
        "both / the slower of the two": measure_spread([both / max(d, c) for d, c, both in rounds]),
        "both / their sum": measure_spread([both / (d + c) for d, c, both in rounds]),
    }
    spreads = {name: measure_spread(values) for name, values in rates.items()}
    print(f"| {options.teacher} to {options.student}, {options.side} pixels, batch {BATCH} | min / median / max |")
    print("|---|---|")
    for name, spread in spreads.items():
        print(f"| {name}, images/s | {format_spread(spread)} |")
    for name, spread in ratios.items():
        print(f"| time of a step: {name} | {format_spread(spread)} |")
    report_machine(machine)
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("json", "photos")}
    write_figures(
        options.json,
        machine,
        {"benchmark": "streaming", "settings": settings, "images_per_s": spreads, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
