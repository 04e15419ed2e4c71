"""Time of an InDistill training step at CIFAR-10 sizes: ours, and a plain loop that works as the published code does.

    python -m benchmarks.training_step --json training_step.json

Batch 128, teacher paper:cnn-a, student paper:cnn-s, recipe paper, both untrained. The images are random bytes: the
time of a step does not depend on what they show.

Ours is `indistill.training.loop.train`, with its batches, steps and Adam. Plain is written here from the method's
description: images one by one through PIL in two loader workers; at each step the whole teacher (in eval mode, its
autograd graph built), a pruned copy of its stages and the whole student, of which one loss is used; a new Adam every
epoch. Its targets are detached, so that backward stops there.

Each phase is timed over some steps after a warm-up, plain and ours in turn, each in a process of its own, in several
rounds. The schedule of 70 epochs is extrapolated from the time per step; the start of an epoch (loader workers,
shuffling) is in neither figure.
"""

import argparse
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures
from indistill.curriculum.phases import Phase
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.distillation.distill import Distillation, build_step, build_terms
from indistill.distillation.pairing import pair_stages
from indistill.models.loading import load_network
from indistill.runs.compress import plan_curriculum
from indistill.runs.config import Recipe, load_recipe
from indistill.training.loop import Record, Step, train

CLASSES = 10
STEPS_PER_EPOCH = 391  # 50,000 images in batches of 128
LOADER_WORKERS = 2
SIDES = ("plain", "ours")
EPSILON = 1e-7
TEACHER_WIDTHS, TEACHER_EMBEDDING = (16, 32, 64), 128
STUDENT_WIDTHS, STUDENT_EMBEDDING = (8, 16, 32), 64


class TimedEnoughError(Exception):
    """Ends a training loop whose steps have been timed."""


class Stopwatch:
    """Times steps after a warm-up; the last one ends the loop by `TimedEnoughError`."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps, self.done, self.seconds = warm_up, steps, 0, 0.0
        self.started = perf_counter()

    def resume(self, _records: list[Record], _batches: int) -> None:
        """Nothing: there are no checkpoints."""

    def report_batch(self, _phase: Phase, _loss: Tensor, _images: int) -> None:
        self.done += 1
        if self.done == self.warm_up:
            self.started = perf_counter()
        if self.done == self.warm_up + self.steps:
            self.seconds = (perf_counter() - self.started) / self.steps
            raise TimedEnoughError

    def report_epoch(self, record: Record) -> None:
        """Nothing: epochs are not timed."""


Run = Callable[[Phase, Stopwatch], None]


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, each opened by PIL and augmented by torchvision when it is asked for."""

    def __init__(self, pixels: Pixels, recipe: Recipe) -> None:
        self.images, self.labels = pixels.images, pixels.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(recipe.data.image_size, padding=recipe.data.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(recipe.data.mean, recipe.data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[position])), self.labels[position]


class PlainCnn(nn.Module):
    """Three times convolution, batch norm, ReLU, pooling; then embedding and classifier. Returns all five outputs."""

    def __init__(self, widths: tuple[int, int, int], embedding_dim: int) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in zip(inputs, widths, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.to_embedding = nn.Linear(widths[-1] * 2 * 2, embedding_dim)  # 32 pixels become 15, 6 and 2
        self.to_logits = nn.Linear(embedding_dim, CLASSES)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs, x = [], images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
            outputs.append(x)
        embedding = F.relu(self.to_embedding(x.flatten(1)))
        return [*outputs, embedding, self.to_logits(embedding)]


class PrunedStages(nn.Module):
    """The teacher's stages with its strongest filters alone; each reads the whole stage before it."""

    def __init__(self, teacher: PlainCnn, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for whole, norm, width in zip(teacher.convolutions, teacher.norms, widths, strict=True):
            strength = whole.weight.detach().abs().sum((1, 2, 3))
            keep = strength.topk(width).indices.sort().values
            pruned, pruned_norm = nn.Conv2d(whole.in_channels, width, 3), nn.BatchNorm2d(width)
            pruned.weight.data.copy_(whole.weight.data[keep])
            pruned_norm.weight.data.copy_(norm.weight.data[keep])
            self.convolutions.append(pruned)
            self.norms.append(pruned_norm)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        layers = zip(self.convolutions, self.norms, inputs, strict=True)
        return [F.max_pool2d(F.relu(norm(convolution(x))), 2) for convolution, norm, x in layers]


def compute_plain_pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the Jeffreys divergence of the row-wise probabilities, summed over a cosine and a Student-t kernel."""
    loss = torch.zeros(())
    for kernel in (_compare_angles, _compare_distances):
        p, q = kernel(teacher), kernel(student)
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        loss = loss + ((p - q) * (torch.log(p + EPSILON) - torch.log(q + EPSILON))).mean()
    return loss


def _compare_angles(x: Tensor) -> Tensor:
    unit = x / (x.norm(dim=1, keepdim=True) + EPSILON)
    return (1 + unit @ unit.T) / 2


def _compare_distances(x: Tensor) -> Tensor:
    squares = (x * x).sum(1, keepdim=True)
    return 1 / (1 + torch.sqrt((squares + squares.T - 2 * x @ x.T).clamp(min=0) + EPSILON))


def make_plain(pixels: Pixels, recipe: Recipe) -> Run:
    """Returns the plain loop over a phase."""
    dataset, batch_size = PlainImages(pixels, recipe), recipe.data.batch_size
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=LOADER_WORKERS)

    def run(phase: Phase, stopwatch: Stopwatch) -> None:
        teacher = PlainCnn(TEACHER_WIDTHS, TEACHER_EMBEDDING).eval()
        student = PlainCnn(STUDENT_WIDTHS, STUDENT_EMBEDDING).train()
        pruned = PrunedStages(teacher, STUDENT_WIDTHS).train()
        for _ in range(phase.epochs):
            optimiser = torch.optim.Adam(student.parameters(), lr=phase.lr)
            for images, _labels in loader:
                optimiser.zero_grad()
                features, outputs = teacher(images), student(images)
                targets = pruned([images, *features[:2]])
                if phase.objective == "stage":
                    loss = F.mse_loss(outputs[phase.stage - 1], targets[phase.stage - 1].detach())
                else:
                    loss = compute_plain_pkt(outputs[3], features[3].detach())
                loss.backward()
                optimiser.step()
                stopwatch.report_batch(phase, loss, len(images))

    return run


def make_ours(pixels: Pixels, recipe: Recipe) -> Run:
    """Returns the library's loop over a phase, put together as `indistill compress` does."""
    batches = Batches(pixels, recipe.preprocessing, **recipe.batching, seed=0, device=torch.device("cpu"))
    example = torch.zeros(2, 3, recipe.data.image_size, recipe.data.image_size)

    def run(phase: Phase, stopwatch: Stopwatch) -> None:
        pairing = pair_stages(load_network("paper:cnn-a"), load_network("paper:cnn-s"), (), warm_up=True)
        teacher, student = pairing.teacher, pairing.student
        distillation = Distillation(
            teacher.module.to(memory_format=torch.channels_last),
            student.module.to(memory_format=torch.channels_last),
            teacher.embedding,
            student.embedding,
            pairing.stages,
        )

        terms = build_terms(distillation, example, recipe.loss.options)

        def build(phase: Phase) -> Step:
            batch_statistics = recipe.targets.statistics == "batch"
            return build_step(distillation, terms, phase, example, batch_statistics=batch_statistics)

        options, ahead = recipe.optimisation, recipe.targets.ahead
        train(distillation.student, (phase,), batches, build, stopwatch, options, ahead=ahead)

    return run


@cache
def make_side(side: str, images: int, threads: int) -> Run:
    """Returns a side's loop over a phase, made once in its process."""
    torch.set_num_threads(threads)
    recipe = load_recipe("paper")
    make = {"plain": make_plain, "ours": make_ours}[side]
    return make(make_pixels(images, recipe.data.image_size), recipe)


def time_step(side: str, phase: Phase, images: int, threads: int, warm_up: int, steps: int) -> float:
    """Returns the mean time of a step in ms."""
    run = make_side(side, images, threads)
    torch.manual_seed(0)
    gc.collect()  # ends the loader workers of the run before
    stopwatch = Stopwatch(warm_up, steps)
    with suppress(TimedEnoughError):
        run(replace(phase, epochs=warm_up + steps), stopwatch)  # at least as many epochs as it takes
    return 1e3 * stopwatch.seconds


def make_pixels(count: int, side: int) -> Pixels:
    """Returns random images with random labels."""
    generator = np.random.default_rng(0)
    images: NDArray[np.uint8] = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, count)
    return Pixels("random", images, labels, tuple(map(str, range(count))), tuple(map(str, range(CLASSES))), ())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="random images in memory (50000)")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each phase (100)")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before them (10)")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured (3)")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for both (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    schedule = plan_curriculum(load_recipe("paper"), len(STUDENT_WIDTHS), None)
    measured = {phase.name: phase for phase in schedule if "final" not in phase.name}  # the same step at another rate
    epochs = {
        name: sum(other.epochs for other in schedule if other.stage == phase.stage) for name, phase in measured.items()
    }
    amount = (arguments.images, arguments.threads, arguments.warm_up, arguments.steps)
    processes = {side: ProcessPoolExecutor(1, get_context("spawn")) for side in SIDES}
    times: dict[str, dict[str, list[float]]] = {side: {name: [] for name in measured} for side in SIDES}
    for _ in range(arguments.rounds):
        for name, phase in measured.items():
            for side, process in processes.items():
                times[side][name].append(process.submit(time_step, side, phase, *amount).result())
    for process in processes.values():
        process.shutdown()

    rows = []
    for name in measured:
        plain, ours = median(times["plain"][name]), median(times["ours"][name])
        rows.append({"phase": name, "epochs": epochs[name], "plain_ms": plain, "ours_ms": ours, "ratio": plain / ours})
    minutes = {
        side: [
            sum(STEPS_PER_EPOCH * epochs[name] * times[side][name][i] for name in measured) / 60e3
            for i in range(arguments.rounds)
        ]
        for side in SIDES
    }
    spreads = {
        "plain_minutes": measure_spread(minutes["plain"]),
        "ours_minutes": measure_spread(minutes["ours"]),
        "ratio": measure_spread([p / o for p, o in zip(minutes["plain"], minutes["ours"], strict=True)]),
    }
    print(f"{'phase':<12}{'epochs':>8}{'plain ms/step':>16}{'ours ms/step':>16}{'ratio':>8}")
    for row in rows:
        print("{phase:<12}{epochs:>8}{plain_ms:>16.2f}{ours_ms:>16.2f}{ratio:>8.2f}".format(**row))
    total = sum(epochs.values())
    print(f"whole schedule of {total} epochs, extrapolated; min / median / max of {arguments.rounds} rounds")
    for name, spread in spreads.items():
        print(f"  {name.replace('_', ' '):<14} {format_spread(spread)}")
    print(f"random images; torch threads: {arguments.threads}, loader workers of plain: {LOADER_WORKERS}")
    report_machine(machine)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    figures = {
        "benchmark": "training_step",
        "settings": settings,
        "phases": rows,
        "schedule": spreads,
        "rounds_ms": times,
    }
    write_figures(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
