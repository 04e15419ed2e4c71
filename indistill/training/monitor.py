"""What watches a training: one progress bar, and metrics.jsonl."""

import json
import time
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from indistill.curriculum.phases import Phase, count_epochs
from indistill.errors import InputError
from indistill.progress import make_console
from indistill.run_folder import write_text
from indistill.talk import say
from indistill.training.loggers import Loggers
from indistill.training.loop import Record
from indistill.training.validation import FIGURES

REFRESH_S = 0.2


class SilentMonitor:
    """Of the processes beside the first one: watches nothing."""

    def resume(self, _records: list[Record], _batches: int, /) -> None:
        """Does nothing."""

    def report_batch(self, _phase: Phase, _loss: Tensor, _images: int, /) -> None:
        """Does nothing."""

    def report_epoch(self, _record: Record, /) -> None:
        """Does nothing."""


class TrainingMonitor:
    """A line an epoch, below them on a terminal one bar that says stage, loss, images/s and time left; a record in
    metrics.jsonl for each epoch. Use it as a context.

    Args:
        phases: the schedule.
        steps: batches in an epoch.
        log: the file that records are appended to, emptied first.
        loggers: where they go besides.
    """

    def __init__(self, phases: tuple[Phase, ...], steps: int, log: Path, loggers: Loggers | None = None) -> None:
        self.records: list[Record] = []
        self._loggers = loggers or Loggers()
        self._log, self._console = log, make_console()
        write_text(log, "")
        self._epochs = count_epochs(phases)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s  left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=self._epochs * steps, loss="-", rate="-")
        self._done, self._images, self._shown_images, self._shown_at = 0, 0, 0, time.monotonic()

    def __enter__(self) -> "TrainingMonitor":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def resume(self, records: list[Record], batches: int) -> None:
        """Begins with the epochs that an earlier process has done; metrics.jsonl holds these and no others."""
        self.records, self._done = list(records), batches
        write_text(self._log, "".join(json.dumps(record) + "\n" for record in records))
        for record in records:
            self._loggers.log(record)
        self._bar.update(self._task, completed=batches)
        say(f"going on after {len(records)} of {self._epochs} epochs and {batches} batches in all")

    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        """Moves the bar; the loss is read from its device only when it is shown."""
        self._done += 1
        self._images += images
        now = time.monotonic()
        if self._bar.disable or now - self._shown_at < REFRESH_S:
            return
        rate = (self._images - self._shown_images) / (now - self._shown_at)
        self._shown_images, self._shown_at = self._images, now
        self._bar.update(
            self._task, description=phase.name, completed=self._done, loss=f"{float(loss):.4g}", rate=f"{rate:,.0f}"
        )

    def report_epoch(self, record: Record) -> None:
        """Appends the record.

        Raises:
            InputError: the log cannot be written to.
        """
        self.records.append(record)
        try:
            with self._log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(
                f"{self._log} cannot be written: {error.strerror}; make room, and go on with --resume"
            ) from error
        self._loggers.log(record)
        measured = "".join(f"  {name} {record[name]:.4f}" for name in FIGURES if name in record)
        say(
            f"epoch {record['epoch']}/{self._epochs}  {record['phase']}  loss {record['loss']:.4g}  "
            f"{record['images_per_s']:,.0f} images/s{measured}"
        )
