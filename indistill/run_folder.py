"""The run folder: what `train` and `compress` write, and `export`, `bench` and `evaluate` read. Needs no torch.

config.yaml         resolved, everything needed to repeat the run
environment.json    versions, machine, commit, fingerprint of the data, seed
metrics.jsonl       a record for each epoch
student.safetensors (or model.safetensors, of `train`) the weights; there when the run is complete
report.html         curves and figures
closeness.json      how close a student is to its teacher, of `compress` and `report`
evaluation-*.json   metrics that `compare` keeps
tensorboard/        event files, of --logger tensorboard; wandb/ of --logger wandb
loggers.json        where W&B and MLflow log
checkpoint/         the state of a training that is not complete
lock                held by the process that writes
auxiliary/          the run of an auxiliary teacher, where there is one
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from indistill import run_documents
from indistill.errors import ExistsError, InputError, ModelError, describe_os_error
from indistill.files.documents import read_json, read_yaml
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.files.formats import CLOSENESS, RUN, require_format
from indistill.files.hashing import hash_file
from indistill.files.locking import LOCK
from indistill.preprocess import Preprocessing
from indistill.run_documents import CONFIG, ENVIRONMENT, RECORD, check_document

Command = Literal["train", "compress"]
WEIGHTS_NAMES: dict[Command, str] = {"train": "model.safetensors", "compress": "student.safetensors"}
RUN_FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "report.html",
    "closeness.json",
    "loggers.json",
    "preprocessor_config.json",
    *(
        weights.replace(".safetensors", end)
        for weights in WEIGHTS_NAMES.values()
        for end in (".safetensors", ".onnx", "_fp16.onnx", "_int8.onnx")
    ),
)
# Of a start that was cut off.
BEFORE_CONFIG = {LOCK, "environment.json", "environment.json.partial", "config.yaml.partial"}
LOGGER_FOLDERS = ("tensorboard", "wandb")
CHECKPOINT_FOLDER, AUXILIARY_FOLDER = "checkpoint", "auxiliary"


@dataclass(frozen=True)
class Run:
    """A complete run that was read back.

    Attributes:
        folder: the run folder.
        config: all of config.yaml.
        weights: the file of the weights.
    """

    folder: Path
    config: dict[str, Any]
    weights: Path

    @property
    def network(self) -> dict[str, Any]:
        """The student of `compress`, the model of `train`: spec, arguments, embedding."""
        described: dict[str, Any] = self.config["network"]
        return described

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network was trained with."""
        return Preprocessing.from_dict(self.config["recipe"]["data"])


def create_run(folder: Path, config: dict[str, Any], environment: dict[str, Any], *, overwrite: bool) -> None:
    """Creates a run folder with its config.yaml and environment.json. Of an older run only its own files are removed.

    Raises:
        ExistsError: see `check_run_output`.
        InputError: the folder cannot be written to.
    """
    check_run_output(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        auxiliary = folder / AUXILIARY_FOLDER
        _remove_run_files(auxiliary, (*RUN_FILES, LOCK))
        if auxiliary.is_dir() and not any(auxiliary.iterdir()):
            auxiliary.rmdir()
        _remove_run_files(folder, [name for name in RUN_FILES if name != "config.yaml"])
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error
    write_text(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    # Last, and an older one only now: what makes the folder a run is there at any moment, or nothing that matters is.
    write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def check_run_output(folder: Path, *, overwrite: bool) -> None:
    """Raises ExistsError if a run would be overwritten without being told to, or if the folder is something else."""
    check_no_file_above(folder)
    if not folder.exists() or {path.name for path in folder.iterdir()} <= BEFORE_CONFIG:
        return
    if not is_run(folder):
        raise ExistsError(f"{folder} exists and is not a run; choose another --out")
    if not overwrite:
        complete = any((folder / name).is_file() for name in WEIGHTS_NAMES.values())
        resumable = "" if complete else ", or go on with --resume where its training was cut off"
        raise ExistsError(f"{folder} exists; choose another --out, or replace it with --overwrite{resumable}")


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run."""
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)


def check_no_file_above(folder: Path) -> None:
    """Raises ExistsError if a folder cannot be made because it, or a folder above it, is a file."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise ExistsError(f"{folder} cannot be made a folder, as {path} is a file; choose another --out")


def is_run(folder: Path) -> bool:
    """Returns whether a folder is that of a run, complete or not."""
    try:
        config = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("command") in tuple(WEIGHTS_NAMES) and "network" in config


def require_run_format(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises ModelError unless a run of this config.yaml can be read; the first ones did not state their format."""
    require_format(RUN, config.get("format", 1), f"the run {folder}", ModelError)


def read_run(folder: Path) -> Run:
    """Returns a complete run.

    Raises:
        ModelError: the folder is no run, is of another format, or its training did not end.
    """
    try:
        config = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        weights = folder / WEIGHTS_NAMES[config["command"]]
        require_run_format(folder, config)
        run = Run(folder, config, weights)
        check_document(CONFIG, config)
        _ = run.preprocessing
    except ModelError:  # of another format
        raise
    except (OSError, AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder} is not a run folder: its config.yaml cannot be read ({reason})") from error
    if not weights.is_file():
        raise ModelError(f"{folder} is not complete: it has no {weights.name}; its training was cut off or goes on")
    return run


def read_environment(run: Run) -> dict[str, Any]:
    """Returns the contents of environment.json.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        environment: dict[str, Any] = read_json((run.folder / "environment.json").read_text(encoding="utf-8"))
        check_document(ENVIRONMENT, environment)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{run.folder}/environment.json is damaged ({reason})") from error
    return environment


def read_closeness(run: Run) -> dict[str, Any] | None:
    """Returns the contents of a run's closeness.json, None where there is none of the weights that the run has."""
    try:
        figures: dict[str, Any] = read_json((run.folder / "closeness.json").read_text(encoding="utf-8"))
        check_document(run_documents.CLOSENESS, figures)
        current = figures["schema_version"] == CLOSENESS.version
        measured = current and figures["weights_sha256"] == hash_file(run.weights)
    except (OSError, ValueError, KeyError):
        return None
    return figures if measured else None


def read_metrics(path: Path) -> list[dict[str, float | int | str]]:
    """Returns the records of a metrics.jsonl.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        records = [read_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for record in records:
            check_document(RECORD, record)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is missing or damaged ({' '.join(str(error).split())})") from error
    return records


def write_text(path: Path, text: str) -> None:
    """Writes a file complete or not at all.

    Raises:
        InputError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as stream:
            stream.write(text.encode("utf-8", errors="backslashreplace"))  # file names need not be text
        move_into_place(name_aside(path), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error


def _remove_run_files(folder: Path, names: Iterable[str]) -> None:
    remove_checkpoints(folder)
    for name in LOGGER_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (*(folder / name for name in names), *folder.glob("evaluation-*.json")):
        path.unlink(missing_ok=True)
