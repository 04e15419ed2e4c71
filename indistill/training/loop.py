"""The training loop: phases of a curriculum, one Adam, one record an epoch, and a state that can be saved between any
two batches.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning_fabric.plugins.precision import Precision
from torch import Tensor, nn

from indistill.ahead import run_ahead
from indistill.curriculum.phases import Phase, count_epochs, end_phase, has_stalled
from indistill.curriculum.schedule import Optimisation, compute_rate_factor
from indistill.data.batches import Batches
from indistill.errors import TrainingError
from indistill.parallel.processes import average, copy_from_first, count_processes, is_first, on_first, share_batch
from indistill.talk import say
from indistill.tensors import copy_tensors, list_tensors
from indistill.training.checkpoint import Checkpoints, Snapshot, get_random_states, set_random_states
from indistill.training.devices import clip_gradients
from indistill.training.memory import keep_freed_memory
from indistill.training.optimiser import average_weights, make_optimiser
from indistill.training.safety import LossWatch, describe_batch, explain_failure
from indistill.training.validation import Validation

Record = dict[str, float | int | str]
Target = Any  # a tensor, or a tuple of them: what `prepare` gives and `__call__` takes is the step's own affair


class Step(Protocol):
    """The loss of a batch, the part of the student that it trains, and what is trained beside it."""

    @property
    def network(self) -> nn.Module:
        """The part of the student that is run and trained."""

    @property
    def learnt(self) -> nn.Module:
        """What is trained with the student and dropped after the phase; a module without parameters for nothing."""

    def begin_epoch(self, epoch: int, /) -> None:
        """Called before each epoch of the phase, counted from 0."""

    def prepare(self, images: Tensor, labels: Tensor, /) -> Target:
        """Returns the target for images (B, 3, H, W) and labels (B,): all that no student is needed for."""

    def __call__(self, images: Tensor, target: Target, /) -> Tensor:
        """Returns a scalar loss for images and their target."""


class Monitor(Protocol):
    """What watches the training: a progress bar and a log."""

    def resume(self, records: list[Record], batches: int, /) -> None:
        """Called before a training that goes on: the records of its epochs so far, and its batches so far."""

    def report_batch(self, phase: Phase, loss: Tensor, images: int, /) -> None:
        """Called after each batch; the loss is detached."""

    def report_epoch(self, record: Record, /) -> None:
        """Called after each epoch with its figures."""


def train(
    student: nn.Module,
    phases: tuple[Phase, ...],
    batches: Batches,
    build_step: Callable[[Phase], Step],
    monitor: Monitor,
    options: Optimisation = Optimisation(),  # noqa: B008 - frozen
    *,
    ahead: bool = False,
    checkpoints: Checkpoints | None = None,
    precision: Precision = Precision(),  # noqa: B008 - without state
    validation: Validation | None = None,
) -> None:
    """Trains a network in place through all phases.

    Args:
        student: in memory format channels last for speed; its parameters are trained as far as a phase reaches them.
        phases: the curriculum.
        batches: the training images.
        build_step: gives the loss of a phase, called when the phase begins, and when it goes on in another process.
        monitor: is told of each batch and epoch.
        options: how Adam is run.
        ahead: whether a thread makes the next batch and its target while the student trains on this one: faster on a
            CPU where the student's own work is the larger part and too small for all cores. See `run_ahead`. Not with
            several processes, whose threads would have to speak in turn.
        checkpoints: where the state is saved, and read if there is one: on the CPU, with the same number of threads,
            the training then ends with the weights that it would have had without a break, bit by bit. Of several
            processes the first one reads and writes.
        precision: what runs the networks, by `make_precision`.
        validation: measures held-out images after epochs, may end the training early, and gives the student its best
            weights in the end. Of several processes the first one measures.

    Raises:
        TrainingError: a loss is not finite, or the memory is not enough.
    """
    keep_freed_memory()
    student.train()
    copy_from_first(student)
    saved = on_first(lambda: checkpoints.read() if checkpoints else None)
    training = _Training(student, phases, batches, options, checkpoints if is_first() else None, precision)
    ahead = ahead and count_processes() == 1
    training.validation = validation
    if saved is not None:
        training.phase = saved.phase
        monitor.resume(saved.records, training.count_batches(saved))
    with explain_failure(batches.batch_size):
        while training.phase < len(training.durations):
            step = build_step(phases[training.phase])
            training.begin_phase(step)
            if saved is not None:
                training.restore(saved, step)
                saved = None
            while training.epoch < training.durations[training.phase]:
                training.run_epoch(step, monitor, ahead=ahead)
            training.phase, training.epoch = training.phase + 1, 0
    if training.averaged is not None:
        copy_tensors(student, list_tensors(training.averaged.module))
    if validation is not None:
        on_first(lambda: validation.finish(student, len(training.records)))
        copy_from_first(student)


class _Training:
    """Where a training stands."""

    def __init__(
        self,
        student: nn.Module,
        phases: tuple[Phase, ...],
        batches: Batches,
        options: Optimisation,
        checkpoints: Checkpoints | None,
        precision: Precision,
    ) -> None:
        self.student, self.phases, self.batches, self.options = student, phases, batches, options
        self.device = batches.labels.device
        self.phase = self.epoch = self.batch = 0
        self.durations = [phase.epochs for phase in phases]
        self.order = batches.generator.get_state()
        self.total, self.seconds = torch.zeros((), device=self.device), 0.0
        self.records: list[Record] = []
        self.learnt = nn.Module()
        self.optimiser = make_optimiser(student, self.learnt, options)
        self.averaged = average_weights(student, options.ema)
        self.checkpoints, self.watch = checkpoints, LossWatch(self.device)
        self.precision = precision
        self.validation: Validation | None = None
        self.threads = torch.get_num_threads()  # before `run_ahead` shares them out

    def begin_phase(self, step: Step) -> None:
        """Puts the step's networks into training; Adam goes on with the student's moments unless it starts anew."""
        step.network.train()
        self.learnt = step.learnt.to(self.device).train()
        copy_from_first(self.learnt)
        now, before = self.phases[self.phase], self.phases[max(0, self.phase - 1)]
        anew = self.options.restart == "phase" and (now.objective, now.stage) != (before.objective, before.stage)
        self._make_optimiser(None if anew else self.optimiser)

    def run_epoch(self, step: Step, monitor: Monitor, *, ahead: bool) -> None:
        """Trains for an epoch, or for what is left of one, and reports it."""
        phase, batches, options = self.phases[self.phase], self.batches, self.options
        if self.batch == 0:
            self._begin_epoch(step)
        done, steps = len(self.records) * len(batches), len(batches)
        trained = [*self.student.parameters(), *self.learnt.parameters()]
        started, rate = time.perf_counter() - self.seconds, phase.lr
        prepared = (
            (images, self._prepare(step, images, labels, number))
            for number, (images, labels) in enumerate(batches.draw_epoch(self.batch), self.batch)
        )
        for images, target in run_ahead(prepared) if ahead else prepared:
            rate = phase.lr * compute_rate_factor(options, done + self.batch, count_epochs(self.phases) * steps, steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.zero_grad(set_to_none=True)
            count = batches.count_images(self.batch)
            with self.precision.forward_context(), share_batch(count):
                loss = step(images, target)
            self.precision.backward(loss, None)
            loss = average(loss.detach(), trained)
            if options.clip:
                clip_gradients(self.precision, self.optimiser, trained, options.clip)
            self.precision.optimizer_step(self.optimiser)
            if self.averaged is not None:
                self.averaged.update_parameters(self.student)
            self.total += loss
            self.batch += 1
            monitor.report_batch(phase, loss, count)
            self._check(self.watch.add(loss), images)
            if self.checkpoints and self.batch < steps and self.checkpoints.is_due(epoch_ends=False):
                self._check(self.watch.check(), images)
                self.seconds = time.perf_counter() - started
                self.checkpoints.write(self._capture(), done + self.batch)
        self._check(self.watch.check(), images)
        mean, seconds = float(self.total) / steps, time.perf_counter() - started
        record: Record = {
            "epoch": len(self.records) + 1,
            "phase": phase.name,
            "loss": mean,
            "lr": rate,
            "seconds": round(seconds, 3),
            "images_per_s": round(batches.count / seconds, 1),
        }
        self._validate(record)
        self._end_epoch(record)
        monitor.report_epoch(record)

    def count_batches(self, saved: Snapshot) -> int:
        """Returns the batches of the whole training that a snapshot has behind it."""
        return len(saved.records) * len(self.batches) + saved.batch

    def restore(self, saved: Snapshot, step: Step) -> None:
        """Takes the state of a snapshot over, after `begin_phase` of its phase."""
        if saved.threads != self.threads:
            say(
                f"warning: this training ran with {saved.threads} threads, now with {self.threads}: "
                "the last digits may differ from those of an unbroken run"
            )
        self.epoch, self.batch, self.durations = saved.epoch, saved.batch, list(saved.durations)
        self.order, self.seconds, self.records = saved.order, saved.seconds, list(saved.records)
        self.total = saved.total.to(self.device)
        self.batches.generator.set_state(saved.order)
        copy_tensors(self.student, saved.student)
        copy_tensors(self.learnt, saved.learnt)
        if self.averaged is not None:
            copy_tensors(self.averaged, saved.averaged)
        if self.validation is not None:
            self.validation.restore(saved.validation)
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name not in saved.frozen)
        self._make_optimiser(None)
        self.optimiser.load_state_dict(saved.optimiser)
        self.precision.load_state_dict(saved.precision)
        if self.batch:
            step.begin_epoch(self.epoch)
        set_random_states(saved.random, self.device)  # last, as building a step draws from them

    def _prepare(self, step: Step, images: Tensor, labels: Tensor, number: int) -> Target:
        with self.precision.forward_context(), share_batch(self.batches.count_images(number)):
            return step.prepare(images, labels)

    def _begin_epoch(self, step: Step) -> None:
        step.begin_epoch(self.epoch)
        if self.options.restart == "epoch":
            self._make_optimiser(None)
        self.order = self.batches.generator.get_state()
        self.total, self.seconds = torch.zeros((), device=self.device), 0.0

    def _end_epoch(self, record: Record) -> None:
        self.records.append(record)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self.order = self.batches.generator.get_state()
        losses = [float(record["loss"]) for record in self.records[-self.epoch :]]
        if has_stalled(losses, self.phases[self.phase].tolerance):
            self.durations = end_phase(self.phases, self.durations, self.phase, self.epoch)
        validation = self.validation
        if (
            validation is not None
            and validation.figure.name in record
            and on_first(lambda: validation.has_run_out(len(self.records)))
        ):
            self.durations = [*self.durations[: self.phase], self.epoch]
        if self.checkpoints and (self.checkpoints.is_due(epoch_ends=True) or len(self.records) == sum(self.durations)):
            self.checkpoints.write(self._capture(), len(self.records) * len(self.batches))

    def _validate(self, record: Record) -> None:
        phase, epoch, validation = self.phases[self.phase], len(self.records) + 1, self.validation
        if validation is not None and validation.is_due(phase, epoch, last=epoch == count_epochs(self.phases)):
            trained = self.student if self.averaged is None else self.averaged.module
            record |= on_first(lambda: validation.measure(trained, epoch))

    def _capture(self) -> Snapshot:
        # The order is that of the epoch's beginning: what a thread has made ahead is not trained on yet.
        return Snapshot(
            phase=self.phase,
            epoch=self.epoch,
            batch=self.batch,
            durations=self.durations,
            order=self.order,
            random=get_random_states(self.device),
            student=list_tensors(self.student),
            learnt=list_tensors(self.learnt),
            averaged={} if self.averaged is None else list_tensors(self.averaged),
            frozen=[name for name, parameter in self.student.named_parameters() if not parameter.requires_grad],
            optimiser=self.optimiser.state_dict(),
            total=self.total,
            seconds=self.seconds,
            records=self.records,
            validation={} if self.validation is None else self.validation.capture(),
            threads=self.threads,
            precision=self.precision.state_dict(),
        )

    def _make_optimiser(self, carried: torch.optim.Adam | None) -> None:
        self.optimiser = make_optimiser(self.student, self.learnt, self.options, carried)

    def _check(self, batches_ago: int | None, images: Tensor) -> None:
        """Raises TrainingError if a batch had a loss that is not finite; None if all are well."""
        if batches_ago is None:
            return
        number, gradients = self.batch - batches_ago, []
        if batches_ago:  # made once more: its gradients are gone
            self.batches.generator.set_state(self.order)
            images = next(self.batches.draw_epoch(number - 1))[0]
        else:
            gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        raise TrainingError(
            f"the loss of batch {number} of {len(self.batches)} in epoch {len(self.records) + 1} "
            f"({self.phases[self.phase].name}) is not finite; {describe_batch(images, gradients)}: lower --lr, or look "
            "at the images"
        )
