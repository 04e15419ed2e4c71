"""`--logger`: what was logged is read back by each package's own reader. W&B and MLflow are skipped where they are not
installed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from indistill.errors import InputError
from indistill.training.loggers import Loggers, flatten_config, open_loggers, parse_loggers
from tests.cli.calls import MAIN, assert_refused, fill, make_environment, run_cli, run_process, succeed

Places = dict[str, Path]
Scalars = dict[str, list[tuple[int, float]]]

TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 3 --out {out} --set validation.share=0.25"
CHAIN = (
    "compress --teacher paper:resnet18?width=8 --teacher-weights {resnet} --student paper:cnn-s --data {gallery} "
    "--recipe digits --epochs 7 --auxiliary paper:cnn-a --out {out} --no-report"
)


def read_records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def list_expected(run: Path, name: str) -> list[tuple[int, float]]:
    return [(record["epoch"], pytest.approx(record[name])) for record in read_records(run) if name in record]


def read_tensorboard(run: Path) -> tuple[Scalars, dict]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    parameters = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return scalars, parameters


def cut_off(run: Path, line: str, places: Places, epochs: int) -> None:
    """Kills a run that logs, when some epochs are done."""
    command = [sys.executable, "-c", MAIN, *fill(line, places)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=make_environment())
    log = run / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and (not log.exists() or len(log.read_text().splitlines()) < epochs):
        time.sleep(0.001)
    child.kill()
    child.wait()


def test_tensorboard_holds_each_epoch_and_the_configuration(places: Places) -> None:
    succeed(*fill(TRAIN + " --logger tensorboard --logger tensorboard", places))
    scalars, parameters = read_tensorboard(places["out"])
    assert set(scalars) == {"loss", "lr", "seconds", "images_per_s", "map@r"}
    for name, points in scalars.items():
        assert points == list_expected(places["out"], name)
    assert parameters["recipe.validation.share"].number_value == 0.25
    assert parameters["network.spec"].string_value == "paper:cnn-s"
    assert parameters["recipe.data.flip"].bool_value is False


@pytest.mark.slow
def test_both_trainings_over_an_auxiliary_are_logged(places: Places) -> None:
    succeed(*fill(CHAIN + " --logger tensorboard", places))
    for run in (places["out"], places["out"] / "auxiliary"):
        assert read_tensorboard(run)[0]["loss"] == list_expected(run, "loss")


@pytest.mark.slow
def test_a_resumed_run_has_each_epoch_once_in_tensorboard(places: Places) -> None:
    line = TRAIN.replace("--epochs 3", "--epochs 60") + " --logger tensorboard --checkpoint-every 0"
    cut_off(places["out"], line, places, 4)
    succeed(*fill(line + " --resume", places))
    points = read_tensorboard(places["out"])[0]["loss"]
    assert [step for step, _ in points] == list(range(1, 61))
    assert points == list_expected(places["out"], "loss")


@pytest.mark.slow
def test_an_older_log_goes_with_the_run_that_is_overwritten(places: Places) -> None:
    succeed(*fill(TRAIN + " --logger tensorboard", places))
    (places["out"] / "loggers.json").write_text("{}")
    succeed(*fill(TRAIN + " --overwrite", places))
    assert not (places["out"] / "tensorboard").exists()
    assert not (places["out"] / "loggers.json").exists()


def test_a_missing_package_is_named_before_anything_is_loaded(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indistill.training.loggers.importlib.util.find_spec", lambda _: None)
    for line in (TRAIN, CHAIN):
        result = run_cli(*fill(line.replace("{gallery}", "nothing") + " --logger wandb", places))
        assert_refused(result, "--logger wandb needs the package wandb", "pip install 'indistill[wandb]'")
    assert not places["out"].exists()


def test_a_folder_with_the_name_of_a_logger_is_not_its_package(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb_files").mkdir()  # a namespace package has no origin, as ./wandb where W&B has written
    found = PathFinder.find_spec("wandb_files", [str(tmp_path)])
    monkeypatch.setattr("indistill.training.loggers.importlib.util.find_spec", lambda _: found)
    result = run_cli(*fill(TRAIN + " --logger wandb", places))
    assert_refused(result, "--logger wandb needs the package wandb")


def test_another_logger_is_refused(places: Places) -> None:
    result = run_cli(*fill(TRAIN + " --logger tensorbord", places))
    assert_refused(
        result, "--logger 'tensorbord' is not one of tensorboard, wandb, mlflow. Did you mean 'tensorboard'?"
    )


@pytest.mark.slow
def test_without_a_logger_no_package_of_one_is_imported(places: Places) -> None:
    code = (
        "import sys\nfrom indistill.cli.main import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    assert not end.code\nprint([n for n in ('tensorboard', 'wandb', 'mlflow') if n in sys.modules])"
    )
    result = run_process(*fill(TRAIN.replace("--epochs 3", "--epochs 1"), places), code=code)
    assert result.out.splitlines()[-1] == "[]", result.err


class FailingLogger:
    """Fails at a step, and keeps how it was closed."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, at: int) -> None:
        self.at, self.steps, self.outcomes = at, [], []

    def log(self, record: dict) -> None:
        if record["epoch"] == self.at:
            raise OSError("no server\nthere")
        self.steps.append(record["epoch"])

    def close(self, outcome: str) -> None:
        self.outcomes.append(outcome)


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    bad, good, loggers = FailingLogger(2), FailingLogger(0), Loggers()
    loggers.add("wandb", bad)
    loggers.add("mlflow", good)
    for epoch in (1, 2, 3):
        loggers.log({"epoch": epoch})
    loggers.close("FINISHED")
    assert (bad.steps, bad.outcomes) == ([1], [])
    assert (good.steps, good.outcomes) == ([1, 2, 3], ["FINISHED"])
    assert capfd.readouterr().err == "warning: --logger wandb is left out from here on: no server there\n"


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt(), "KILLED"), (InputError("no room"), "FAILED")])
def test_loggers_end_with_how_the_training_ended(error: BaseException, outcome: str, tmp_path: Path) -> None:
    logger = FailingLogger(0)
    with pytest.raises(type(error)), open_loggers((), tmp_path, {}) as loggers:  # noqa: PT012
        loggers.add("mlflow", logger)
        raise error
    assert logger.outcomes == [outcome]


def test_a_config_is_flattened_by_its_paths() -> None:
    config = {"seed": 3, "recipe": {"data": {"flip": True, "mean": [0.5, 1]}}, "weights": None}
    expected = {"seed": 3, "recipe.data.flip": True, "recipe.data.mean": "[0.5, 1]", "weights": "null"}
    assert flatten_config(config) == expected


def test_a_package_that_is_there_is_accepted() -> None:
    assert parse_loggers(["tensorboard", "tensorboard"]) == ("tensorboard",)


@pytest.fixture
def mlflow_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list]:
    """Returns a function that reads all runs of MLflow in a folder of this test."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    def read() -> list:
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        experiment = client.get_experiment_by_name("indistill")
        return client.search_runs([experiment.experiment_id])

    return read


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_each_epoch_once_after_a_kill(places: Places, mlflow_runs: Callable[[], list]) -> None:
    from mlflow.tracking import MlflowClient

    out, line = places["out"], TRAIN.replace("--epochs 3", "--epochs 20") + " --logger mlflow --checkpoint-every 0"
    cut_off(out, line, places, 4)
    succeed(*fill(line + " --resume", places))
    (run,) = mlflow_runs()
    assert run.info.status == "FINISHED"
    assert run.info.run_name == str(out)
    assert run.data.params["recipe.validation.share"] == "0.25"
    for name, logged in (("loss", "loss"), ("map@r", "map_at_r")):
        history = MlflowClient().get_metric_history(run.info.run_id, logged)
        assert [(point.step, point.value) for point in history] == list_expected(out, name)


@pytest.mark.filterwarnings("ignore")
def test_a_server_that_does_not_answer_is_one_line(
    places: Places, mlflow_runs: Callable[[], list], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = run_cli(*fill(TRAIN + " --logger mlflow", places))
    assert result.code == 2
    assert "error: --logger mlflow: " in result.err.splitlines()[-1]
    assert "set MLFLOW_TRACKING_URI" in result.err.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")
def test_wandb_has_each_epoch_once_after_a_kill(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out, line = places["out"], TRAIN.replace("--epochs 3", "--epochs 20") + " --logger wandb --checkpoint-every 0"
    cut_off(out, line, places, 4)
    before = (out / "loggers.json").read_text()
    succeed(*fill(line + " --resume", places))
    assert (out / "loggers.json").read_text() == before
    (file,) = out.glob("wandb/offline-run-*/*.wandb")
    *logged, end = read_wandb(file)
    assert [int(record["_step"]) for record in logged] == list(range(1, 21))
    for name in ("loss", "map@r"):
        assert [(record["epoch"], record[name]) for record in logged] == list_expected(out, name)
    assert end == {"exit": 0}


def read_wandb(file: Path) -> list[dict]:
    """Returns the records and the exit code in a file of W&B: blocks of 32 KiB after a head of 7 bytes, as LevelDB's
    log has them: checksum (4 bytes), length (2), kind (1: whole, 4: the last part), content.
    """
    from wandb.proto import wandb_internal_pb2

    content, place, whole, found = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind not in (1, 4):
            continue
        record, whole = wandb_internal_pb2.Record.FromString(whole), b""
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
        elif record.WhichOneof("record_type") == "exit":
            found.append({"exit": record.exit.exit_code})
    return found
