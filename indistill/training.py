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

    @property
    def learnt(self) -> nn.Module:
        """What is trained beside the student and dropped afterwards; without parameters where there is nothing."""

    def begin_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0 in the phase."""

    def prepare(self, images: Tensor, labels: Tensor, /) -> tuple[Tensor, ...]:
        """Returns the target for images (B, 3, H, W) and labels (B,): all that no student is needed for."""

    def __call__(self, images: Tensor, target: tuple[Tensor, ...], /) -> Tensor:
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
        step.learnt.train()
        for epoch_of_phase in range(phase.epochs):
            epoch += 1
            step.begin_epoch(epoch_of_phase)
            if restart == "epoch":
                optimiser = _make_optimiser(student, beta2)
            _add_parameters(optimiser, step.learnt)
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


def _add_parameters(optimiser: torch.optim.Adam, learnt: nn.Module) -> None:
    known = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    new = [parameter for parameter in learnt.parameters() if id(parameter) not in known]
    if new:
        optimiser.add_param_group({"params": new})
