"""Where the records of a training go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each logger is of one epoch's record after the other, and of the run's configuration. A resumed run goes on in the same
place, each epoch there once. A logger that fails during the training is left out with a warning: the training is worth
more than its log.
"""

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from indistill.errors import InputError, suggest_nearest
from indistill.files.documents import read_json
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.training.loop import Record

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
Outcome = Literal["FINISHED", "FAILED", "KILLED"]  # as MLflow calls them

PROJECT = "indistill"  # of W&B, and MLflow's experiment, where the environment names no other
TENSORBOARD_FOLDER, PLACES_FILE = "tensorboard", "loggers.json"
PARAMETERS_AT_ONCE, PARAMETER_LENGTH = 100, 500  # MLflow's limits


class Logger(Protocol):
    """One place that records go to. `failures` are the exceptions by which it says that it cannot."""

    failures: tuple[type[Exception], ...]

    def log(self, record: "Record") -> None:
        """Takes the record of an epoch; one that is there already is passed over."""

    def close(self, outcome: Outcome) -> None:
        """Ends with how the training ended."""


class Loggers:
    """Some loggers as one: those that fail are left out, with a warning."""

    def __init__(self) -> None:
        self._loggers: dict[LoggerName, Logger] = {}

    def add(self, name: LoggerName, logger: Logger) -> None:
        """Takes one more."""
        self._loggers[name] = logger

    def log(self, record: "Record") -> None:
        """Gives the record of an epoch to each."""
        for name, logger in list(self._loggers.items()):
            try:
                logger.log(record)
            except logger.failures as error:
                self._leave_out(name, error)

    def close(self, outcome: Outcome) -> None:
        """Ends each."""
        for name, logger in list(self._loggers.items()):
            try:
                logger.close(outcome)
            except logger.failures as error:
                self._leave_out(name, error)

    def _leave_out(self, name: LoggerName, error: Exception) -> None:
        del self._loggers[name]
        reason = " ".join(str(error).split())
        say(f"warning: --logger {name} is left out from here on: {reason}")


class TensorBoardLogger:
    """Event files in the run folder, written anew by each process: a resumed one gets the earlier epochs first."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(folder / TENSORBOARD_FOLDER)  # type: ignore[no-untyped-call]
        measured = [config["held_out"]["figure"]] if "held_out" in config else []
        # As `add_hparams` does, which would open a second file and repeat the metrics in it.
        writer = self._writer.file_writer
        assert writer is not None
        for summary in hparams(flatten_config(config), dict.fromkeys(["loss", *measured], 0.0)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)  # type: ignore[no-untyped-call]
        self._phase: str = ""

    def log(self, record: "Record") -> None:
        """Adds a scalar for each figure, and a text where a phase begins."""
        step = int(record["epoch"])
        for name, value in list_figures(record).items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        if record["phase"] != self._phase:
            self._phase = str(record["phase"])
            self._writer.add_text("phase", self._phase, step)  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self, _outcome: Outcome) -> None:
        """Closes the file."""
        self._writer.close()  # type: ignore[no-untyped-call]


class WandbLogger:
    """A run of Weights & Biases, whose files lie in the run folder; W&B's own environment variables say the rest."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        self.failures: tuple[type[Exception], ...] = (wandb.Error, OSError)
        try:
            self._run = wandb.init(
                dir=str(folder),
                project=_read_environment("WANDB_PROJECT", PROJECT),
                name=_read_environment("WANDB_NAME", str(folder)),
                id=read_places(folder).get("wandb"),
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off"),
            )
        except self.failures as error:
            raise InputError(
                f"--logger wandb: {' '.join(str(error).split())}: log in by 'wandb login', or set WANDB_MODE=offline"
            ) from error
        write_place(folder, "wandb", self._run.id)
        self._next = int(self._run.step)  # the server's, where it knows the run
        if self._run.offline:  # this file gets all epochs again: what a kill left of an earlier one may lack some
            for old in set((folder / "wandb").glob("offline-run-*")) - {Path(self._run.dir).parent}:
                shutil.rmtree(old, ignore_errors=True)

    def log(self, record: "Record") -> None:
        """Adds the record as the step of its epoch."""
        if int(record["epoch"]) >= self._next:
            self._run.log(dict(record), step=int(record["epoch"]))

    def close(self, outcome: Outcome) -> None:
        """Finishes the run, or marks it as failed."""
        self._run.finish(exit_code=int(outcome != "FINISHED"))


class MlflowLogger:
    """A run of MLflow at MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.failures: tuple[type[Exception], ...] = (MlflowException, OSError)
        try:
            self._client = MlflowClient()
            found = read_places(folder).get("mlflow")
            self._run = self._create(folder, config) if found is None else found
            self._client.update_run(self._run, status="RUNNING")
            history = self._client.get_metric_history(self._run, "loss")
        except self.failures as error:
            reason = " ".join(str(error).split())
            raise InputError(f"--logger mlflow: {reason}: set MLFLOW_TRACKING_URI to a server that answers") from error
        self._epochs = max((metric.step for metric in history), default=0)

    def log(self, record: "Record") -> None:
        """Adds the figures as the step of their epoch."""
        from mlflow.entities import Metric

        step, now = int(record["epoch"]), int(time.time() * 1000)
        if step <= self._epochs:
            return
        # The loss last: by it is known that the epoch is there.
        figures = sorted(list_figures(record).items(), key=lambda item: item[0] == "loss")
        metrics = [Metric(name.replace("@", "_at_"), value, now, step) for name, value in figures]
        self._client.log_batch(self._run, metrics=metrics)
        self._client.set_tag(self._run, "phase", record["phase"])
        self._epochs = step

    def close(self, outcome: Outcome) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run, outcome)

    def _create(self, folder: Path, config: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = _read_environment("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = str(self._client.create_run(number, run_name=str(folder)).info.run_id)
        write_place(folder, "mlflow", run)
        parameters = [Param(key, str(value)[:PARAMETER_LENGTH]) for key, value in flatten_config(config).items()]
        for start in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self._client.log_batch(run, params=parameters[start : start + PARAMETERS_AT_ONCE])
        return run


def parse_loggers(texts: Sequence[str]) -> tuple[LoggerName, ...]:
    """Returns the names of `--logger` options, each once, when it is sure that their packages are there.

    Raises:
        InputError: there is no such logger, or its package is missing.
    """
    known = get_args(LoggerName)  # named as their packages
    for text in texts:
        if text not in known:
            raise InputError(f"--logger '{text}' is not one of {', '.join(known)}.{suggest_nearest(text, known)}")
        found = importlib.util.find_spec(text)
        if found is None or found.origin is None:  # a folder of that name is not the package: W&B writes into one
            raise InputError(
                f"--logger {text} needs the package {text}, which is not installed: pip install 'indistill[{text}]'"
            )
    return tuple(name for name in known if name in texts)


@contextmanager
def open_loggers(names: Sequence[LoggerName], folder: Path, config: Mapping[str, Any]) -> Iterator[Loggers]:
    """Yields loggers of a run, and ends them with how the training ended.

    Args:
        names: which, each once; none for none.
        folder: of the run.
        config: the contents of config.yaml.

    Raises:
        InputError: a logger cannot be used.
    """
    loggers = Loggers()
    outcome: Outcome = "FAILED"
    try:
        for name in names:
            loggers.add(name, _open_logger(name, folder, config))
        yield loggers
        outcome = "FINISHED"
    except KeyboardInterrupt:
        outcome = "KILLED"
        raise
    finally:
        loggers.close(outcome)


def flatten_config(config: Mapping[str, Any], place: str = "") -> dict[str, bool | int | float | str]:
    """Returns the values of nested dicts by their path, as `recipe.optimiser.lr`; a list is text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def list_figures(record: "Record") -> dict[str, float]:
    """Returns what is a number in a record, but for the epoch."""
    return {name: float(value) for name, value in record.items() if not isinstance(value, str) and name != "epoch"}


def read_places(folder: Path) -> dict[str, str]:
    """Returns the numbers by which W&B and MLflow know a run, by logger: there it goes on after `--resume`."""
    try:
        places: dict[str, str] = read_json((folder / PLACES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return places


def write_place(folder: Path, name: LoggerName, place: str) -> None:
    """Writes down the number by which a logger knows a run."""
    from indistill.run_folder import write_text

    write_text(folder / PLACES_FILE, json.dumps(read_places(folder) | {name: place}) + "\n")


def _open_logger(name: LoggerName, folder: Path, config: Mapping[str, Any]) -> Logger:
    match name:
        case "tensorboard":
            return TensorBoardLogger(folder, config)
        case "wandb":
            return WandbLogger(folder, config)
        case "mlflow":
            return MlflowLogger(folder, config)


def _read_environment(name: str, default: str) -> str:
    return os.environ.get(name) or default
