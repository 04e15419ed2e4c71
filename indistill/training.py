"""The training loop: phases of a curriculum, one Adam, one record an epoch."""

import math
import time
from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from indistill.ahead import run_ahead
from indistill.curriculum import Phase
from indistill.data.batches import Batches
from indistill.errors import TrainingError
from indistill.memory import keep_freed_memory

Restart = Literal["never", "phase", "epoch"]
Record = dict[str, float | int | str]


class Step(Protocol):
    """The loss of a batch, and the part of the student that it trains."""

    @property
    def network(self) -> nn.Module: ...

    def prepare(self, images: Tensor, labels: Tensor, /) -> Tensor:
        """Returns the target for images (B, 3, H, W) and labels (B,): all that no student is needed for."""

    def __call__(self, images: Tensor, target: Tensor, /) -> Tensor:
        """Returns a scalar loss for images and their target."""


class Monitor(Protocol):
    """What watches the training: a progress bar and a log."""

    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        """Called after each batch; the loss is detached."""

    def report_epoch(self, record: Record) -> None:
        """Called after each epoch with its figures."""


def train(
    student: nn.Module,
    phases: tuple[Phase, ...],
    batches: Batches,
    build_step: Callable[[Phase], Step],
    monitor: Monitor,
    *,
    restart: Restart = "never",
    beta2: float = 0.999,
    ahead: bool = False,
) -> None:
    """Trains a network in place through all phases.

    Args:
        student: in memory format channels last for speed; its parameters are trained as far as a phase reaches them.
        phases: the curriculum.
        batches: the training images.
        build_step: gives the loss of a phase, called when the phase begins.
        monitor: is told of each batch and epoch.
        restart: when Adam starts anew: `phase` is each time that the loss becomes another one.
        beta2: decay of Adam's second moment.
        ahead: whether a thread makes the next batch and its target while the student trains on this one: faster on a
            CPU where the student's own work is the larger part and too small for all cores. See `run_ahead`.

    Raises:
        TrainingError: the loss is not finite.
    """
    keep_freed_memory()
    optimiser = _make_optimiser(student, beta2)
    epoch, objective = 0, (phases[0].objective, phases[0].stage)
    student.train()
    for phase in phases:
        step = build_step(phase)
        step.network.train()
        if restart == "phase" and (phase.objective, phase.stage) != objective:
            optimiser = _make_optimiser(student, beta2)
        objective = (phase.objective, phase.stage)
        for _ in range(phase.epochs):
            epoch += 1
            if restart == "epoch":
                optimiser = _make_optimiser(student, beta2)
            for group in optimiser.param_groups:
                group["lr"] = phase.lr
            started, total = time.perf_counter(), torch.zeros((), device=batches.labels.device)
            prepared = ((images, step.prepare(images, labels)) for images, labels in batches.draw_epoch())
            for images, target in run_ahead(prepared) if ahead else prepared:
                optimiser.zero_grad(set_to_none=True)
                loss = step(images, target)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                total += loss.detach()
                monitor.report_batch(phase, loss.detach(), len(images))
            mean, seconds = float(total) / len(batches), time.perf_counter() - started
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss is {mean} in epoch {epoch} ({phase.name}): lower --lr, or look at the images"
                )
            monitor.report_epoch(
                {
                    "epoch": epoch,
                    "phase": phase.name,
                    "loss": mean,
                    "lr": phase.lr,
                    "seconds": round(seconds, 3),
                    "images_per_s": round(batches.count / seconds, 1),
                }
            )


def _make_optimiser(network: nn.Module, beta2: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), betas=(0.9, beta2), fused=True)
