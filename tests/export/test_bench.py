"""Engines in processes of their own, timed in turn. Nothing here depends on how fast the machine is."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from indistill.closeness import measure_overlaps, prepare_vectors
from indistill.errors import IndistillError, InputError
from indistill.export.bench import Examination, Protocol, _find_warnings, _plan_turns, count_turns, run_bench
from indistill.export.bench_engines import ENGINES, find_missing
from indistill.export.bench_process import Engine
from indistill.export.bench_report import BenchReport, Quality, Speedup
from indistill.export.session import EmbeddingSession
from indistill.images import decode_image
from tests.export.conftest import PREPROCESSING
from tests.miniatures import encode, make_noise

QUICK = Protocol(batches=(1, 3), threads=(1,), rounds=2, warmup=0, iterations=2, min_seconds=0)
BREAKS_AT_THREE = """
from torch import nn

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        if x.shape[0] == 3:
            raise RuntimeError("no batch of three")
        return self.fc(self.pool(self.conv(x).relu()).flatten(1))
"""


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(make_noise(rng, 40, 30 + i), "PNG") for i in range(25)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("broken") / "breaks.py"
    path.write_text(BREAKS_AT_THREE)
    return path


@pytest.fixture(scope="module")
def received() -> list[np.ndarray]:
    return []


@pytest.fixture(scope="module")
def report(file: Path, broken: Path, images: list[bytes], received: list[np.ndarray]) -> BenchReport:
    def judge(reference: np.ndarray, vectors: np.ndarray) -> Quality:
        received.append(vectors)
        expected, found = (prepare_vectors(part, "engine").neighbours for part in (reference, vectors))
        return Quality(images=len(vectors), neighbour_overlap=measure_overlaps(expected, found).mean(), map=None)

    engines = [
        Engine("teacher", "pytorch", "paper:cnn-a", PREPROCESSING),
        Engine("student", "onnxruntime", str(file), PREPROCESSING, parameters=15_050),
        Engine("student", "pytorch", f"{broken}:Network", PREPROCESSING),
    ]
    turns: list[int] = []
    found = run_bench(engines, images[:2], QUICK, turns.append, Examination(images, judge))
    assert sum(turns) == count_turns(engines, QUICK) == 12
    return found


def test_every_engine_has_a_row_for_each_batch_size(report: BenchReport) -> None:
    rows = [(row.role, row.engine, row.batch) for row in report.results]
    assert rows[:2] == [("teacher", "pytorch", 1), ("student", "onnxruntime", 1)]
    assert rows[-2:] == [("teacher", "pytorch", 3), ("student", "onnxruntime", 3)]
    assert report.reference.model == "paper:cnn-a"


def test_an_engine_that_cannot_run_its_model_is_a_row_with_the_reason(report: BenchReport) -> None:
    assert [(row.engine, row.batch) for row in report.failures] == [("pytorch", 3)]
    assert "no batch of three" in report.failures[0].reason
    assert report.results[2].key[1].endswith("breaks.py:Network")


def test_figures_are_consistent(report: BenchReport, file: Path) -> None:
    for row in report.results:
        latency = row.latency_ms
        assert latency.count == 4
        assert 0 < latency.min <= latency.p50 <= latency.p90 <= latency.p95 <= latency.p99
        assert row.throughput_images_per_s == pytest.approx(row.batch / latency.mean * 1e3)
        assert len(row.speedup.rounds) == len(row.turn_medians_ms) == 2
        assert row.speedup.low == min(row.speedup.rounds) <= row.speedup.p50 <= row.speedup.high
        assert row.first_result_s > 0
        assert row.peak_rss_mb is not None
        assert row.peak_rss_mb > 10
    teacher, student = report.results[:2]
    for round_, ratio in enumerate(student.speedup.rounds):
        assert ratio == pytest.approx(teacher.turn_medians_ms[round_] / student.turn_medians_ms[round_])
    assert teacher.speedup == Speedup(p50=1, low=1, high=1, rounds=[1, 1])
    assert (teacher.parameters, student.parameters) == (57_994, 15_050)
    assert student.size_bytes == file.stat().st_size
    assert report.environment.logical_cores >= 1
    assert {"torch", "numpy", "pillow"} <= {name.lower() for name in report.environment.packages}


def test_the_process_of_onnx_runtime_is_smaller_than_that_of_pytorch(report: BenchReport) -> None:
    """It would not be if both engines shared a process, or if it imported torch."""
    teacher, student = (row.peak_rss_mb for row in report.results[:2])
    assert teacher is not None
    assert student is not None
    assert student < 0.7 * teacher


def test_the_vectors_that_are_judged_are_those_of_the_engine(
    report: BenchReport, received: list[np.ndarray], session: EmbeddingSession, images: list[bytes]
) -> None:
    expected = session.embed_images([decode_image(content) for content in images])
    np.testing.assert_allclose(received[1], expected, atol=1e-5)
    qualities = [row.quality for row in report.results]
    assert qualities[0] == Quality(images=25, neighbour_overlap=1, map=None)
    assert qualities[1] is not None
    assert qualities[1] == qualities[4]
    assert qualities[2] is None
    assert any("cannot be judged" in warning for warning in report.warnings)


def test_every_other_round_goes_backwards() -> None:
    plan = list(_plan_turns(3, Protocol(batches=(1, 8), rounds=3)))
    assert [position for position, batch in plan if batch == 8] == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert len(plan) == 18


@pytest.mark.parametrize("include", ["resize", "decode"])
def test_what_is_timed_is_written_down(include: str, file: Path, images: list[bytes]) -> None:
    engines = [Engine("student", "onnxruntime", str(file), PREPROCESSING)]
    protocol = Protocol((2,), (1, 2), 1, 0, 1, 0, include)
    found = run_bench(engines, images[:3], protocol)
    assert found.protocol.include == include
    assert [(row.batch, row.threads) for row in found.results] == [(2, 1), (2, 2)]
    assert BenchReport.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_a_reference_that_cannot_run_ends_the_bench(images: list[bytes], tmp_path: Path) -> None:
    engines = [Engine("student", "onnxruntime", str(tmp_path / "none.onnx"), PREPROCESSING)]
    with pytest.raises(InputError, match=r"there is no file .*none\.onnx"):
        run_bench(engines, images[:2], QUICK)
    (tmp_path / "ends.py").write_text("import os\nos._exit(3)\n")
    engines = [Engine("student", "pytorch", f"{tmp_path}/ends.py:make", PREPROCESSING)]
    with pytest.raises(IndistillError, match=r"the pytorch process of .*ends\.py:make ended: killed"):
        run_bench(engines, images[:2], QUICK)


def test_a_student_that_is_not_faster_is_warned_of(report: BenchReport) -> None:
    slow = report.results[1].model_copy(update={"speedup": Speedup(p50=0.9, low=0.8, high=1.1, rounds=[0.8, 1.1])})
    fast = report.results[1].model_copy(update={"speedup": Speedup(p50=2, low=2, high=2, rounds=[2, 2]), "batch": 3})
    quiet = report.environment.model_copy(update={"loadavg_before": 0.0, "logical_cores": 4})
    assert _find_warnings(quiet, QUICK, [report.results[0], slow, fast]) == [
        f"the student {slow.model} by onnxruntime is not faster than the teacher at batch 1"
    ]
    assert _find_warnings(quiet, QUICK, [slow]) == []  # without a teacher


def test_a_loaded_machine_and_too_many_threads_are_warned_of(report: BenchReport) -> None:
    busy = report.environment.model_copy(update={"loadavg_before": 1.1, "logical_cores": 2})
    warnings = _find_warnings(busy, Protocol(threads=(1, 4)), report.results[:1])
    assert [warning.split(":")[0] for warning in warnings] == [
        "load average 1.1 on 2 cores at the start",
        "4 threads on 2 cores wait for one another",
    ]


def test_engines_that_are_not_installed_say_what_to_install() -> None:
    assert find_missing("pytorch") is None
    assert find_missing("onnxruntime") is None
    missing = {kind: find_missing(kind) for kind in ENGINES}
    for reason in filter(None, missing.values()):
        assert "install" in reason


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an extra")
def test_openvino_gives_the_vectors_of_onnx_runtime(file: Path, images: list[bytes]) -> None:
    received = []

    def judge(reference: np.ndarray, vectors: np.ndarray) -> Quality:
        received.append(vectors)
        return Quality(images=len(vectors), neighbour_overlap=1, map=None)

    engines = [Engine("student", kind, str(file), PREPROCESSING) for kind in ("onnxruntime", "openvino")]
    found = run_bench(engines, images[:2], Protocol((1,), (1,), 1, 0, 1, 0), examination=Examination(images, judge))
    assert [row.engine for row in found.results] == ["onnxruntime", "openvino"]
    np.testing.assert_allclose(received[1], received[0], atol=1e-5)
