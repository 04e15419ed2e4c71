"""A run begins, or goes on where it was cut off: only as the same run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from indistill.errors import InputError, describe_os_error
from indistill.files.documents import read_json, read_yaml
from indistill.files.locking import hold_lock
from indistill.parallel.processes import is_first
from indistill.run_documents import CONFIG, ENVIRONMENT, check_document
from indistill.run_folder import (
    WEIGHTS_NAMES,
    check_no_file_above,
    check_run_output,
    create_run,
    is_run,
    remove_checkpoints,
    require_run_format,
)
from indistill.runs.settings import RunSettings
from indistill.talk import say

DIFFERENCES_SHOWN = 3
# Of the config: what is a warning only, and what follows from the other values.
UNCOMPARED = ("format", "version", "schedule", "alignment", "processes")


def check_output(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Finds out before anything is loaded whether a run may be written, or resumed.

    Raises:
        ExistsError: see `check_run_output`.
        InputError: there is no run to resume.
    """
    if not resume:
        check_run_output(folder, overwrite=overwrite)
        return
    if overwrite:
        raise InputError("--resume goes on with the run and --overwrite removes it: give one of them")
    check_no_file_above(folder)
    if not is_run(folder):
        raise InputError(f"{folder} holds no run that could be resumed: leave --resume out to start it")


@contextmanager
def hold_run(settings: RunSettings) -> Iterator[None]:
    """Holds the right to write to a run; of several processes that train together the first one does.

    Raises:
        ExistsError: see `check_run_output`.
        InputError: another process holds it, or the folder cannot be written to.
    """
    if not is_first():
        yield
        return
    if not settings.resume:
        check_run_output(settings.out, overwrite=settings.overwrite)  # nothing is put into a folder of something else
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{settings.out} cannot be written: {describe_os_error(error)}") from error
    with hold_lock(settings.out, "run"):
        yield


def open_run(settings: RunSettings, config: dict[str, Any], environment: dict[str, Any]) -> bool:
    """Creates the run in a folder that is held, or finds the one that is to go on; returns whether it must be trained.

    Raises:
        ExistsError: a run would be overwritten.
        InputError: the folder holds another run than the one that is to be resumed.
    """
    folder = settings.out
    if not settings.resume:
        create_run(folder, config, environment, overwrite=settings.overwrite)
        return True
    _check_same(folder, config, environment)
    if not (folder / WEIGHTS_NAMES[config["command"]]).is_file():
        return True
    say(f"{folder} is complete: there is nothing to resume")
    remove_checkpoints(folder)
    return False


def read_width(folder: Path) -> float:
    """Returns the width that a run's student was narrowed to.

    Raises:
        InputError: the run cannot be read, or its student is no narrowed teacher.
    """
    try:
        return float(_read(folder)[0]["network"]["narrowing"]["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} was begun with another student than a width: start anew with --overwrite"
        ) from error


def find_differences(before: object, now: object, place: str = "") -> list[str]:
    """Returns a line for each value that differs between two nests of dicts and lists, in the order of the first."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        return [line for key in keys for line in find_differences(before.get(key), now.get(key), f"{place}.{key}")]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True), 1)
        return [line for i, (one, other) in pairs for line in find_differences(one, other, f"{place}.{i}")]
    if before == now:
        return []
    name = place.removeprefix(".").removeprefix("recipe.")
    return [f"{name} was {_shorten(before)}, is {_shorten(now)}"]


def _check_same(folder: Path, config: dict[str, Any], environment: dict[str, Any]) -> None:
    before, before_environment = _read(folder)
    now = yaml.safe_load(yaml.safe_dump(config))  # as it would be read back

    def strip(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in UNCOMPARED}

    data = {"data_fingerprint": before_environment.get("data_fingerprint")}
    differences = find_differences(strip(before), strip(now))
    differences += find_differences(data, {"data_fingerprint": environment["data_fingerprint"]})
    differences = differences or find_differences(before.get("schedule"), now["schedule"], "schedule")
    if differences:
        more = f" and {len(differences) - DIFFERENCES_SHOWN} more" if len(differences) > DIFFERENCES_SHOWN else ""
        raise InputError(
            f"{folder} was begun with other settings: {'; '.join(differences[:DIFFERENCES_SHOWN])}{more}. "
            "Resume it with its own, or start anew with --overwrite"
        )
    versions = find_differences(before_environment.get("versions"), environment["versions"])
    if versions:
        say(
            f"warning: {'; '.join(versions)} since {folder} was begun: the result may differ from that of an unbroken "
            "run"
        )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        config: dict[str, Any] = read_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        environment: dict[str, Any] = read_json((folder / "environment.json").read_text(encoding="utf-8"))
        check_document(CONFIG, config)
        check_document(ENVIRONMENT, environment)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder} cannot be resumed ({reason}): start anew with --overwrite") from error
    require_run_format(folder, config)
    return config, environment


def _shorten(value: object, limit: int = 60) -> str:
    text = str(value)
    return text if len(text) <= limit else text[:limit] + "..."
