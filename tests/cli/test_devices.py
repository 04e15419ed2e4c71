"""`--devices`, `--precision` and `--compile` on the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.calls import MAIN, REPOSITORY, Result, assert_refused, fill, make_environment, run_process, succeed

Places = dict[str, Path]
Refuse = Callable[..., None]
COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --data digits/train --recipe digits --no-report"
SHORT = f"{COMPRESS} --no-warm-up --epochs 3 --checkpoint-every 0 --out {{out}}"
# Rounding is amplified by Adam, by less at a small rate. tests/indistill/test_processes.py compares in float64.
TRAININGS = {
    "batch statistics, pkt": "--faithful --lr 1e-4 --epochs 5",
    "contrastive": "--no-warm-up --loss contrastive --lr 1e-4 --epochs 2",
}


def leave_out_waiting(result: Result) -> Result:
    """Returns a result without the lines that are said where something takes seconds, as on a busy machine."""
    lines = result.err.splitlines(keepends=True)
    return result._replace(err="".join(line for line in lines if not line.endswith(" ...\n")))


@pytest.fixture(scope="module")
def pair(workspace: Places, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the run that two processes write of SHORT."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    result = run_process(*fill(f"{SHORT} --devices 2", workspace | {"out": folder}))
    assert result.code == 0, result.err
    return folder


def read_weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def read_losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
def test_two_processes_write_the_run_that_one_writes(places: Places, options: str) -> None:
    line = f"{COMPRESS} {options}"
    alone = leave_out_waiting(succeed(*fill(f"{line} --out {{here}}/alone", places)))
    both = leave_out_waiting(run_process(*fill(f"{line} --out {{out}} --devices 2", places)))
    assert both.code == 0, both.err
    assert both.out == f"{places['out']}\n"
    assert both.err.count("epoch 1/") == 1
    assert [line.split()[:1] for line in both.err.splitlines()] == [line.split()[:1] for line in alone.err.splitlines()]
    assert read_losses(places["out"]) == pytest.approx(read_losses(places["here"] / "alone"), rel=5e-4)
    files = [sorted(path.name for path in run.iterdir()) for run in (places["out"], places["here"] / "alone")]
    assert files[0] == files[1]
    one, two = (load_file(run / "student.safetensors") for run in (places["here"] / "alone", places["out"]))
    differences = torch.cat([(two[name] - one[name]).abs().flatten().float() for name in one])
    assert differences.mean() < 1e-4  # batches of another size, from the same start, give 2e-3


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(places: Places) -> None:
    places["out"].mkdir()
    (places["out"] / "mine.txt").touch()
    result = leave_out_waiting(run_process(*fill(f"{SHORT} --devices 2", places)))
    assert_refused(result, "exists and is not a run")


def start(line: str, places: Places) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Returns a command that has trained an epoch, and its processes, in a group of its own."""
    command = [sys.executable, "-c", MAIN, *fill(line, places)]
    running = subprocess.Popen(
        command, stdout=-1, stderr=-1, text=True, encoding="utf-8", env=make_environment(), start_new_session=True
    )
    log, started = places["out"] / "metrics.jsonl", time.monotonic()
    while running.poll() is None and time.monotonic() < started + 100 and not (log.is_file() and log.read_text()):
        time.sleep(0.02)
    return running, psutil.Process(running.pid).children(recursive=True)


def finish(running: subprocess.Popen[str], processes: list[psutil.Process]) -> Result:
    """Returns how a command ended, after a check that none of its processes is left."""
    out, err = running.communicate(timeout=60)
    _, left = psutil.wait_procs(processes, timeout=10)
    assert not left
    return Result(running.returncode, out, err)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_resumes_to_the_same_weights(places: Places, pair: Path) -> None:
    running, processes = start(f"{SHORT} --devices 2", places)
    trainers = [process for process in processes if "spawn_main" in " ".join(process.cmdline())]
    trainers[1].kill()
    result = finish(running, processes)
    assert result.code == 1
    (line,) = [line for line in result.err.splitlines() if "indistill" in line]
    assert line.startswith("indistill: error: process 1 of the training was killed (SIGKILL)")
    resumed = run_process(*fill(f"{SHORT} --devices 2 --resume", places))
    assert resumed.err.count("going on after") == 1, resumed.err
    assert read_weights(places["out"]) == read_weights(pair)


@pytest.mark.slow
def test_ctrl_c_ends_all_processes(places: Places) -> None:
    running, processes = start(f"{SHORT.replace('--epochs 3', '--epochs 500')} --devices 2", places)
    os.killpg(running.pid, signal.SIGINT)
    result = finish(running, processes)
    assert result.code == 130, result.err
    assert result.err.count("the same command with --resume") == 1
    assert "error" not in result.err


@pytest.mark.slow
def test_torchrun_starts_the_processes_as_well(places: Places, pair: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "indistill.cli.main", *fill(f"{SHORT} --device cpu", places)],
        capture_output=True,
        text=True,
        env=make_environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(places["out"])) == 1
    assert done.stderr.count("epoch 3/3") == 1
    assert read_weights(places["out"]) == read_weights(pair)


@pytest.mark.slow
def test_ray_train_starts_the_processes_as_well(places: Places, pair: Path) -> None:
    pytest.importorskip("ray.train.torch", reason="Ray Train is not installed: pip install 'ray[train]'")
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples/ray_train.py", "2", *fill(f"{SHORT} --device cpu", places)],
        capture_output=True,
        text=True,
        env=make_environment() | {"RAY_ADDRESS": "local"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_weights(places["out"]) == read_weights(pair)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--devices 2 --device cuda:1", "'cuda:1' is one GPU, and 2 processes have one each: give --device cuda"),
        pytest.param(
            "--devices 2 --device cuda",
            "'cuda' cannot be used here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_devices_that_are_not_there_are_refused(refuse: Refuse, options: str, words: str) -> None:
    refuse(f"{SHORT} {options}", words)


@pytest.mark.slow
def test_mixed_precision_trains_nearly_as_float32_does(places: Places) -> None:
    line = f"{COMPRESS} --epochs 4 --lr 1e-3 --set optimiser.clip=1"
    for precision in ("32", "bf16", "16"):
        succeed(*fill(f"{line} --precision {precision} --out {{here}}/{precision}", places))
    full = read_losses(places["here"] / "32")
    for precision in ("bf16", "16"):
        mixed = read_losses(places["here"] / precision)
        assert mixed != full
        assert mixed == pytest.approx(full, rel=0.2)
        weights = load_file(places["here"] / precision / "student.safetensors")
        assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}


@pytest.mark.slow
def test_a_compiler_that_is_missing_is_one_line(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(places["none"]))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(places["here"] / "cache"))
    result = run_process(*fill(f"{SHORT} --compile", places))
    assert_refused(result, "--compile: torch.compile failed (", "leave --compile out")
    assert not places["out"].exists()
