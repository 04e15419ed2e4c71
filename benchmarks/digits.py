"""The learning rates of the demo's two students on scikit-learn's digits, chosen without a look at the test images.

    python -m benchmarks.digits [--rates 0.001 0.002 0.004 0.008] [--seeds 1 2] [--test-seeds 1 2 3] [--json FILE]

A quarter of the training images, drawn at random, is held out. For each rate the supervised student and the InDistill
student of `indistill demo` are trained on the others, which are the gallery too, and the held-out images are the
queries. Then each student is trained with the rate that was best for it on all training images, and measured once with
the test images. The final rate is a tenth of the rate, as in the recipe; the teacher keeps the recipe's rate. Prints
mAP by the cosine in percent.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.machine import describe_machine, report_machine, write_figures
from indistill.cli.walk import STUDENT, TEACHER, TEACHER_EPOCHS
from indistill.data.pixels import Pixels, load_pixels
from indistill.data.specs import open_images
from indistill.distillation.pairing import pair_stages
from indistill.models.embedding import embed_pixels
from indistill.models.loading import Network, load_network
from indistill.retrieval.evaluation.evaluate import LabelledVectors, evaluate_retrieval
from indistill.runs.compress import run_compress
from indistill.runs.config import load_recipe
from indistill.runs.settings import RunSettings
from indistill.runs.supervise import run_supervised

SECTIONS = {"supervised": "supervised", "indistill": "optimiser"}  # side: section of its learning rate
HELD_OUT = 0.25


def select_pixels(pixels: Pixels, chosen: np.ndarray) -> Pixels:
    """Returns some of the images."""
    names = tuple(pixels.names[i] for i in chosen)
    return replace(pixels, images=pixels.images[chosen], labels=pixels.labels[chosen], names=names)


def load(spec: str, seed: int, classes: int) -> Network:
    """Returns a network with the random weights of a seed."""
    torch.manual_seed(seed)
    sizes = {"image_size": load_recipe("digits").data.image_size, "num_classes": classes}
    return load_network(spec, arguments=sizes)


def train_teacher(train: Pixels, seed: int, out: Path, epochs: int | None) -> Path:
    """Returns the run of the demo's teacher."""
    settings = RunSettings(out, "digits/train", epochs or TEACHER_EPOCHS, seed, torch.device("cpu"), True)
    return run_supervised(load(TEACHER, seed, len(train.classes)), train, load_recipe("digits"), settings)


def train_student(
    side: str, rate: float, train: Pixels, teacher: Path, seed: int, out: Path, epochs: int | None
) -> Path:
    """Returns the run of a student at a learning rate."""
    section = SECTIONS[side]
    recipe = load_recipe("digits", {f"{section}.lr": rate, f"{section}.final_lr": rate / 10})
    settings = RunSettings(out, "digits/train", epochs, seed, torch.device("cpu"), True)
    student = load(STUDENT, seed, len(train.classes))
    if side == "supervised":
        return run_supervised(student, train, recipe, settings)
    return run_compress(pair_stages(load_network(str(teacher)), student, (), warm_up=True), train, recipe, settings)


def measure_map(run: Path, gallery: Pixels, queries: Pixels) -> float:
    """Returns mAP by the cosine in percent."""
    network, preprocessing = load_network(str(run)), load_recipe("digits").preprocessing
    vectors = [
        LabelledVectors(embed_pixels(network, preprocessing, part.images), [str(label) for label in part.labels])
        for part in (gallery, queries)
    ]
    return 100 * evaluate_retrieval(vectors[0], vectors[1], [1])["cosine"].metrics["map"]


def format_spread(values: list[float]) -> str:
    """Returns mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def main() -> None:
    """Chooses on the held-out images, then measures on the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="*", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--test-seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, help="of each training, for a quick trial")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options, machine = parser.parse_args(), describe_machine()
    preprocessing = load_recipe("digits").preprocessing
    train, test = (load_pixels(open_images(f"digits/{split}"), preprocessing) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(train))
    held_out, fit = (select_pixels(train, np.sort(part)) for part in np.split(order, [int(HELD_OUT * len(train))]))
    found: dict[str, dict[float, list[float]]] = {side: {rate: [] for rate in options.rates} for side in SECTIONS}
    tested: dict[str, list[float]] = {side: [] for side in SECTIONS}
    with TemporaryDirectory() as folder:
        place = Path(folder)
        for seed in options.seeds:
            teacher = train_teacher(fit, seed, place / "teacher", options.epochs)
            for side, rates in found.items():
                for rate, values in rates.items():
                    run = train_student(side, rate, fit, teacher, seed, place / "student", options.epochs)
                    values.append(measure_map(run, fit, held_out))
                    print(f"held out: seed {seed}, {side}, {rate}: {values[-1]:.2f}", file=sys.stderr, flush=True)
        best = {side: max(rates, key=lambda rate: statistics.mean(rates[rate])) for side, rates in found.items()}
        for seed in options.test_seeds:
            teacher = train_teacher(train, seed, place / "teacher", options.epochs)
            for side, rate in best.items():
                run = train_student(side, rate, train, teacher, seed, place / "student", options.epochs)
                tested[side].append(measure_map(run, train, test))
    print(f"| student | {' | '.join(f'lr {rate:g}' for rate in options.rates)} | chosen | test images |")
    print("|---" * (len(options.rates) + 3) + "|")
    for side, rates in found.items():
        cells = [format_spread(values) for values in rates.values()]
        print(f"| {side} | {' | '.join(cells)} | {best[side]:g} | {format_spread(tested[side])} |")
    report_machine(machine)
    figures = {"benchmark": "digits", "held_out": found, "chosen": best, "test": tested}
    write_figures(options.json, machine, figures)


if __name__ == "__main__":
    main()
