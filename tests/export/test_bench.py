from pathlib import Path

import numpy as np
import pytest

from indistill.errors import IndistillError, InputError
from indistill.export.bench import Engine, Protocol, count_turns, run_bench
from tests.export.conftest import PREPROCESSING

QUICK = Protocol(batches=(1, 3), threads=1, rounds=2, warmup=0, iterations=2, min_seconds=0)


@pytest.fixture(scope="module")
def figures(file: Path, pixels: np.ndarray) -> dict:
    engines = [Engine("teacher", "pytorch", "paper:cnn-a"), Engine("student", "onnxruntime", str(file))]
    turns: list[int] = []
    found = run_bench(engines, pixels[:2], PREPROCESSING, QUICK, turns.append)
    assert sum(turns) == count_turns(engines, QUICK) == 8
    return found


def test_every_engine_has_a_row_for_each_batch_size(figures: dict) -> None:
    rows = [(row["role"], row["engine"], row["batch"]) for row in figures["results"]]
    assert rows == [
        ("teacher", "pytorch", 1),
        ("student", "onnxruntime", 1),
        ("teacher", "pytorch", 3),
        ("student", "onnxruntime", 3),
    ]


def test_figures_are_consistent(figures: dict, file: Path) -> None:
    for row in figures["results"]:
        latency = row["latency_ms"]
        assert latency["count"] == 4
        assert 0 < latency["min"] <= latency["p50"] <= latency["p95"] <= latency["p99"]
        assert row["throughput_images_per_s"] == pytest.approx(row["batch"] / latency["mean"] * 1e3)
        ratio = row["speedup_vs_teacher"]
        assert ratio["p50_low"] <= ratio["p50"] <= ratio["p50_high"]
        assert row["first_result_s"] > 0
        assert row["peak_rss_mb"] > 10
    assert figures["results"][0]["speedup_vs_teacher"] == {"p50": 1, "p50_low": 1, "p50_high": 1}
    assert figures["results"][0]["parameters"] == 57_994
    assert figures["results"][1]["size_bytes"] == file.stat().st_size
    assert figures["environment"]["threads"] == 1


def test_the_process_of_onnx_runtime_is_smaller_than_that_of_pytorch(figures: dict) -> None:
    """It would not be if both engines shared a process, or if it imported torch."""
    teacher, student = figures["results"][:2]
    assert student["peak_rss_mb"] < 0.7 * teacher["peak_rss_mb"]


def test_a_process_that_ends_is_reported(pixels: np.ndarray, tmp_path: Path) -> None:
    engines = [Engine("student", "onnxruntime", str(tmp_path / "none.onnx"))]
    with pytest.raises(InputError, match=r"there is no file .*none\.onnx"):
        run_bench(engines, pixels[:2], PREPROCESSING, QUICK)
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    engines = [Engine("student", "pytorch", f"{tmp_path}/ends.py:make")]
    with pytest.raises(IndistillError, match=r"the pytorch process of .*ends\.py:make ended: killed"):
        run_bench(engines, pixels[:2], PREPROCESSING, QUICK)


def test_a_student_that_is_not_faster_is_warned_of(file: Path, pixels: np.ndarray) -> None:
    engines = [Engine("teacher", "onnxruntime", str(file)), Engine("student", "pytorch", "paper:resnet18")]
    found = run_bench(engines, pixels[:2], PREPROCESSING, Protocol((1,), 1, 1, 0, 1, 0))
    assert "the student by pytorch is not faster than the teacher at batch 1" in found["warnings"]
