"""Two processes train as one does: in float64, where rounding does not hide what differs."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from indistill.curriculum.phases import Phase
from indistill.curriculum.schedule import Optimisation
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, Share, load_pixels, scan_pixels
from indistill.data.sets import ArraySet
from indistill.distillation.distill import Distillation, StageStep, build_step, build_terms
from indistill.errors import DataError
from indistill.losses.options import LossOptions
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.parallel.processes import (
    average,
    copy_from_first,
    count_processes,
    divide,
    exchange,
    find_share,
    gather,
    get_rank,
    is_first,
    on_first,
    share_batch,
    weigh_share,
)
from indistill.preprocess import Preprocessing
from indistill.runs.supervise import ClassStep
from indistill.stages.graph import StagePair
from indistill.training.loop import Step, train

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(2, 3, 32, 32, dtype=torch.float64)
PAIRS = tuple(StagePair(f"stage{i}", f"stage{i}", tuple(range(4 * 2**i))) for i in (1, 2, 3))
LOSSES = {
    "pkt": LossOptions(),
    "contrastive": LossOptions(name="contrastive"),
    "hint, which learns": LossOptions(name="hint"),
    "pkth and labels": LossOptions(name="pkth", supervised="cross-entropy"),
}
STAGES = {
    "stage, batch statistics": Phase("stage 2", "stage", 2, 2, 1e-3),
    "stage, regressor": Phase("stage 1", "stage", 1, 2, 1e-3),
}
NAMES = (*LOSSES, *STAGES, "classes", "averaged, clipped")


@dataclass
class Watch:
    """Keeps the losses."""

    losses: list[float]

    def resume(self, records: list[dict], batches: int) -> None:
        raise AssertionError

    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        self.losses += [float(loss), float(images)]

    def report_epoch(self, record: dict) -> None:
        self.losses.append(float(record["loss"]))


class Wide:
    """A step whose networks are given images in float64; the losses of embeddings are computed in float32."""

    def __init__(self, step: Step) -> None:
        self.step, self.network, self.learnt = step, step.network, step.learnt
        if isinstance(step, StageStep):
            step.learnt.double()
            step.teacher.double()

    def begin_epoch(self, epoch: int) -> None:
        self.step.begin_epoch(epoch)

    def prepare(self, images: Tensor, labels: Tensor) -> object:
        return self.step.prepare(images.double(), labels)

    def __call__(self, images: Tensor, target: object) -> Tensor:
        return self.step(images.double(), target)


def make_batches() -> Batches:
    images = np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.arange(37) % 10, (), tuple(map(str, range(10))), ())
    return Batches(pixels, Preprocessing(32), batch_size=13, flip=True, crop_padding=4, seed=0, device=CPU)


def run_training(name: str) -> list[Tensor]:
    """Returns losses, numbers of images, and the weights and buffers in the end. 13, 13 and 11 images are shared."""
    torch.manual_seed(0)
    teacher, student = build_cnn_a().double(), build_cnn_s().double()
    if not is_first():
        nn.init.zeros_(student.conv1.weight)  # the first process's are taken
    alignment = "regressor" if "regressor" in name else "prune"
    distillation = Distillation(teacher, student, "embedding", "embedding", PAIRS, alignment)
    phase = STAGES.get(name, Phase("embedding", "embedding", 0, 2, 1e-3))
    terms = build_terms(distillation, EXAMPLE, LOSSES.get(name, LossOptions()), classes=10)

    def build(phase: Phase) -> Step:
        if name == "classes":
            return Wide(ClassStep(student))
        return Wide(build_step(distillation, terms, phase, EXAMPLE, batch_statistics="statistics" in name))

    watch = Watch([])
    options = Optimisation(ema=0.9, clip=0.1) if name == "averaged, clipped" else Optimisation()
    train(student, (phase,), make_batches(), build, watch, options, ahead=True)
    return [torch.tensor(watch.losses, dtype=torch.float64), *student.state_dict().values()]


def join(rank: int, count: int, port: int, work: Callable[[], object], file: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    result = work()
    if rank == 0:
        torch.save(result, file)
    torch.distributed.destroy_process_group()


def run_processes(count: int, work: Callable[[], object], folder: Path) -> object:
    """Returns what a function returns in the first of several processes that call it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    spawn(join, (count, port, work, folder / "result.pt"), count)
    return torch.load(folder / "result.pt")


def train_all() -> dict[str, list[Tensor]]:
    return {name: run_training(name) for name in NAMES}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    return run_processes(2, train_all, tmp_path_factory.mktemp("trained"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one(trained: dict[str, list[Tensor]], name: str) -> None:
    alone = run_training(name)
    assert alone[0][:4].tolist()[1::2] == [13, 13]
    assert len(alone) == len(trained[name])
    # Losses are computed in float32, whose rounding may fall the other way; a float32 network would be 1e-3 away.
    for one, two in zip(alone, trained[name], strict=True):
        torch.testing.assert_close(two, one, rtol=2e-6, atol=2e-6)


def test_one_process_shares_nothing() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert (count_processes(), get_rank(), is_first(), divide(5), find_share(5)) == (1, 0, True, (5,), slice(0, 5))
    with share_batch(3):
        assert gather(rows) is rows
        assert weigh_share(rows) is rows
        assert average(rows, []) is rows
    assert on_first(lambda: 4) == 4


def compute_shared() -> dict[str, object]:
    rank = get_rank()
    module = nn.BatchNorm1d(3)
    nn.init.constant_(module.weight, rank + 1)
    copy_from_first(module)
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    shared = {"divide": divide(8), "first": on_first(lambda: f"of {rank}"), "copied": module.weight.detach()}
    with share_batch(8):
        own = images[find_share(8)]
        mean, var = torch.zeros(3), torch.ones(3)
        normalised = F.batch_norm(own, mean, var, training=True)
        kept = F.batch_norm(own.float(), mean, var, training=False)
        shared |= {"normalised": gather(normalised), "mean": mean, "var": var, "kept": gather(kept)}
        shared["labels"] = gather(torch.arange(8)[find_share(8)])
        shared["weighed"] = average(weigh_share(own.float().mean()), [])
    return shared


@pytest.mark.slow
def test_three_processes_share_a_batch_of_eight(tmp_path: Path) -> None:
    shared = run_processes(3, compute_shared, tmp_path)
    images = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    mean, var = torch.zeros(3), torch.ones(3)
    normalised = F.batch_norm(images, mean, var, training=True)
    assert (shared["divide"], shared["first"], shared["copied"].tolist()) == ((3, 3, 2), "of 0", [1, 1, 1])
    torch.testing.assert_close(shared["normalised"], normalised.float(), rtol=0.01, atol=0.01)
    torch.testing.assert_close(shared["mean"], mean, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(shared["var"], var, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        shared["kept"], F.batch_norm(images.float(), shared["mean"], shared["var"]), rtol=1e-5, atol=1e-5
    )
    assert shared["labels"].tolist() == list(range(8))
    assert float(shared["weighed"]) == pytest.approx(float(images.float().mean()), rel=1e-5)


class CountedSet(ArraySet):
    """Counts what is decoded in this process."""

    decoded: ClassVar[list[int]] = []

    def read(self, position: int) -> Image.Image:
        self.decoded.append(position)
        if position == 7:
            raise DataError("damaged")
        return super().read(position)


def make_counted() -> CountedSet:
    images = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 3), dtype=np.uint8)
    names = [f"{number:02d}" for number in range(37)]
    return CountedSet("mine", images, names, tuple(map(str, range(10))), np.arange(37) % 10)


def read_streamed() -> dict[str, object]:
    images = make_counted()
    pixels = scan_pixels(images, Preprocessing(8), workers=1, share=Share(get_rank(), count_processes(), exchange))
    scanned = list(CountedSet.decoded)
    CountedSet.decoded.clear()
    batches = Batches(pixels, Preprocessing(8), batch_size=13, flip=True, crop_padding=2, seed=0, device=CPU)
    shapes = [tuple(images.shape) for images, _ in batches.draw_epoch()]
    return {
        "scanned": exchange(scanned),
        "read": exchange(list(CountedSet.decoded)),
        "found": (pixels.fingerprint, pixels.positions.tolist(), [image.reason for image in pixels.skipped]),
        "shapes": shapes,
    }


@pytest.mark.slow
def test_no_process_reads_all_streamed_images(tmp_path: Path) -> None:
    shared = run_processes(2, read_streamed, tmp_path)
    assert shared["scanned"] == [list(range(0, 37, 2)), list(range(1, 37, 2))]
    first, second = (set(read) for read in shared["read"])
    assert first.isdisjoint(second)
    assert first | second == set(range(37)) - {7}
    assert shared["shapes"] == [(7, 3, 8, 8), (7, 3, 8, 8), (5, 3, 8, 8)]
    alone = scan_pixels(make_counted(), Preprocessing(8))
    assert shared["found"] == (alone.fingerprint, alone.positions.tolist(), ["damaged"])
    assert alone.fingerprint == load_pixels(make_counted(), Preprocessing(8)).fingerprint


@pytest.mark.slow
def test_a_step_without_the_others_rows_would_be_another(trained: dict[str, list[Tensor]]) -> None:
    """The twin: the loss of half the batch is not that of the whole."""
    alone = run_training("pkt")[0]
    torch.manual_seed(0)
    distillation = Distillation(build_cnn_a().double(), build_cnn_s().double(), "embedding", "embedding", PAIRS)
    terms = build_terms(distillation, EXAMPLE, LossOptions())
    step = Wide(build_step(distillation, terms, Phase("", "embedding", 0, 1, 1e-3), EXAMPLE, batch_statistics=False))
    images, labels = next(make_batches().draw_epoch())
    halves = [step(half, step.prepare(half, labels)).item() for half in (images[:7], images[7:])]
    assert abs(sum(halves) / 2 - float(alone[0])) > 0.01 * float(alone[0])
