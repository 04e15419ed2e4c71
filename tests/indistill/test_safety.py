import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from indistill.curriculum.phases import Phase
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.errors import TrainingError
from indistill.preprocess import Preprocessing
from indistill.training.loop import train
from indistill.training.safety import LossWatch, explain_failure, explain_interruption

PHASES = (Phase("a", "embedding", 0, 2, 1e-3),)


class Deaf:
    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None: ...

    def report_epoch(self, record: dict) -> None: ...


class FailingStep:
    """Its loss is not a number in one batch, counted from 0 over all epochs."""

    def __init__(self, network: nn.Module, fails_at: int, error: Exception | None = None) -> None:
        self.network, self.learnt, self.error = network, nn.Module(), error
        self.left, self.batch = fails_at, torch.zeros(0)

    def begin_epoch(self, epoch: int) -> None: ...

    def prepare(self, images: Tensor, labels: Tensor) -> Tensor:
        return labels

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        self.left -= 1
        if self.left >= 0:
            return self.network(images.mean((2, 3))).mean()
        if self.error is not None:
            raise self.error
        if not self.batch.numel():
            self.batch = images
        return self.network(images.mean((2, 3))).mean() * float("inf")


def run(step: FailingStep) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.zeros(40, dtype=np.int64), (), (), ())
    cpu = torch.device("cpu")
    batches = Batches(pixels, Preprocessing(4), batch_size=8, flip=True, crop_padding=1, seed=0, device=cpu)
    train(step.network, PHASES, batches, lambda _: step, Deaf())


# Where a batch is looked at once, as on the CPU; where it is found at the epoch's end, as on a GPU.
@pytest.mark.parametrize("every", [1, 50])
def test_a_loss_that_is_not_finite_names_its_batch(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(device: torch.device) -> LossWatch:
        watch = LossWatch(device)
        watch._every = every
        return watch

    monkeypatch.setattr("indistill.training.loop.LossWatch", make)
    step = FailingStep(nn.Linear(3, 1), fails_at=7)
    with pytest.raises(TrainingError) as caught:
        run(step)
    low, high, mean = (float(value) for value in (step.batch.min(), step.batch.max(), step.batch.mean()))
    message = str(caught.value)
    assert re.match(r"the loss of batch 3 of 5 in epoch 2 \(a\) is not finite; ", message), message
    assert f"its images go from {low:.4g} to {high:.4g}, mean {mean:.4g}" in message
    assert ("gradient norm" in message) == (every == 1)
    assert "lower --lr" in message
    assert "\n" not in message


def test_the_watch_looks_at_intervals_and_finds_the_first() -> None:
    watch = LossWatch(torch.device("meta"))
    assert all(watch.add(torch.ones(())) is None for _ in range(50))
    watch.add(torch.ones(()))
    assert watch.add(torch.tensor(float("nan"))) is None
    watch.add(torch.tensor(float("inf")))
    watch.add(torch.ones(()))
    assert watch.check() == 2
    assert watch.check() is None


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=["gpu", "cpu", "numpy"])
def test_a_lack_of_memory_names_a_smaller_batch(error: Exception) -> None:
    with pytest.raises(TrainingError, match="not enough for batches of 8 images: try --batch-size 4"):
        run(FailingStep(nn.Linear(3, 1), fails_at=2, error=error))


def test_two_images_cannot_be_fewer() -> None:
    with pytest.raises(TrainingError, match="smaller --image-size"), explain_failure(2):
        raise MemoryError


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run(FailingStep(nn.Linear(3, 1), fails_at=0, error=RuntimeError("shapes differ")))


def test_an_interruption_says_from_where_to_go_on(tmp_path: Path) -> None:
    begins = "there is no checkpoint yet: the same command with --resume begins with the first epoch"
    goes_on = "the same command with --resume goes on from epoch"
    for batches, note in ((None, begins), (6, f"{goes_on} 2"), (9, f"{goes_on} 2"), (10, f"{goes_on} 3")):
        if batches is not None:
            (tmp_path / f"{batches:010d}-0123456789abcdef.pt").touch()
        with pytest.raises(KeyboardInterrupt) as caught, explain_interruption(tmp_path, steps=5):
            raise KeyboardInterrupt
        assert caught.value.__notes__ == [note]
