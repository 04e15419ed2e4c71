"""Two benches of the same agree within the spread that they print; a slower one does not."""

import json
from pathlib import Path

import numpy as np
import pytest

from indistill.errors import InputError
from indistill.export.bench import Protocol, summarise_ratios
from indistill.export.bench_compare import (
    TOLERANCE,
    check_comparable,
    compare_reports,
    judge_change,
    list_differences,
    list_regressions,
)
from indistill.export.bench_process import Engine
from indistill.export.bench_report import (
    BenchReport,
    Environment,
    Failure,
    Latency,
    ProtocolRecord,
    Reference,
    Result,
    RowKey,
    format_schema,
    read_report,
)
from indistill.preprocess import Preprocessing

ROOT = Path(__file__).parents[2]
KEY = RowKey("student", "s.onnx", "onnxruntime", "fp32", 1, 1)
TEACHER = Engine("teacher", "pytorch", "t", Preprocessing())
ROUNDS = 5


def make_result(role: str, ratios: list[float], model: str = "s.onnx", batch: int = 1) -> Result:
    latency = Latency(count=1, min=1, mean=1, std=0, p50=1, p90=1, p95=1, p99=1)
    return Result(
        role=role,
        engine="pytorch" if role == "teacher" else "onnxruntime",
        model="t" if role == "teacher" else model,
        precision="fp32",
        batch=batch,
        threads=1,
        image_size=32,
        parameters=None,
        size_bytes=1,
        sha256=None,
        latency_ms=latency,
        turn_medians_ms=[1.0] * len(ratios),
        throughput_images_per_s=1,
        first_result_s=1,
        peak_rss_mb=None,
        speedup=summarise_ratios(ratios),
    )


def make_report(ratios: list[float], batch: int = 1) -> BenchReport:
    rounds = len(ratios)
    return BenchReport(
        version="0",
        environment=Environment(
            cpu="X",
            cpu_flags=[],
            logical_cores=2,
            os="O",
            python="3",
            packages={"torch": "2"},
            governor=None,
            loadavg_before=0,
            loadavg_after=0,
        ),
        warnings=[],
        protocol=ProtocolRecord(
            include="network", batches=[1], threads=[1], rounds=rounds, warmup=1, iterations=1, min_seconds=0
        ),
        reference=Reference(role="teacher", engine="pytorch", model="t", precision="fp32"),
        results=[make_result("teacher", [1.0] * rounds), make_result("student", ratios, batch=batch)],
        failures=[],
    )


def draw_ratios(rng: np.random.Generator, slowdown: float = 1.0) -> list[float]:
    """Returns the ratios of rounds whose turns vary by 8 %, now and then by much more, as on a busy machine."""
    noise = np.exp(0.08 * rng.standard_t(3, (2, ROUNDS)))
    return list(3.0 / slowdown * noise[0] / noise[1])


def test_two_benches_of_the_same_agree_within_the_spread_that_they_print() -> None:
    rng = np.random.default_rng(0)
    verdicts = [
        judge_change(KEY, summarise_ratios(draw_ratios(rng)), summarise_ratios(draw_ratios(rng)), TOLERANCE).verdict
        for _ in range(5000)
    ]
    # All of five rounds below, or above, all of five others: 2 in 252 by chance.
    assert 0.003 < 1 - verdicts.count("same") / len(verdicts) < 0.013


def test_half_the_speed_is_a_regression_on_the_same_noisy_machine() -> None:
    rng = np.random.default_rng(1)
    verdicts = [
        judge_change(KEY, summarise_ratios(draw_ratios(rng)), summarise_ratios(draw_ratios(rng, 2.0)), 0.05).verdict
        for _ in range(1000)
    ]
    assert verdicts.count("slower") > 850  # one round far off may hide it
    assert "faster" not in verdicts


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ([1.9, 2, 2.1, 2], [1.5, 1.6, 1.7, 1.6], "slower"),
        ([1.9, 2, 2.1, 2], [1.5, 1.6, 1.95, 1.6], "same"),  # one round reaches the old ones
        ([2, 2, 2, 2], [1.96, 1.96, 1.96, 1.96], "same"),  # less than the tolerance
        ([2, 2, 2, 2], [1.8, 1.8, 1.8, 1.8], "slower"),
        ([1.5, 1.6, 1.7, 1.6], [1.9, 2, 2.1, 2], "faster"),
        ([1.5, 1.6, 1.95, 1.6], [1.9, 2, 2.1, 2], "same"),
    ],
)
def test_the_rule_by_hand(old: list[float], new: list[float], verdict: str) -> None:
    change = judge_change(KEY, summarise_ratios(old), summarise_ratios(new), 0.05)
    assert change.verdict == verdict
    apart = max(new) < min(old) or min(new) > max(old)
    assert (abs(change.change) > change.noise) == apart


def test_rows_are_found_again_and_the_reference_is_left_out() -> None:
    old, new = make_report([2.0] * 4), make_report([1.0] * 4)
    (change,) = compare_reports(old, new)
    assert (change.key, change.old, change.new, change.verdict) == (KEY, 2, 1, "slower")
    assert list_regressions([change]) == [change]
    assert list_regressions(compare_reports(new, old)) == []
    with pytest.raises(InputError, match="no row of the same model, engine"):
        compare_reports(old, make_report([1.0] * 4, batch=2))


def test_a_row_that_fails_now_is_a_regression_and_one_that_was_not_asked_for_is_none() -> None:
    more = make_result("student", [2.0] * 4, model="other.onnx")
    old = make_report([2.0] * 4)
    old = old.model_copy(update={"results": [*old.results, more]})
    failure = Failure(**more.key._asdict(), reason="no")
    new = make_report([2.0] * 4)
    assert [change.verdict for change in compare_reports(old, new)] == ["same", "not measured"]
    failed = compare_reports(old, new.model_copy(update={"failures": [failure]}))
    assert [change.verdict for change in failed] == ["same", "fails"]
    assert len(list_regressions(failed)) == 1


def test_what_cannot_be_compared_is_refused() -> None:
    old = make_report([2.0] * 4)
    check_comparable(old, TEACHER, Protocol(rounds=4))
    with pytest.raises(InputError, match="needs 4 rounds or more to know the noise, and this bench has 3"):
        check_comparable(old, TEACHER, Protocol(rounds=3))
    with pytest.raises(InputError, match="OLD has 2"):
        check_comparable(make_report([2.0] * 2), TEACHER, Protocol(rounds=4))
    with pytest.raises(InputError, match=r"ratios of OLD are to t by pytorch \(fp32\), and these to u by pytorch"):
        check_comparable(old, Engine("teacher", "pytorch", "u", Preprocessing()), Protocol(rounds=4))
    with pytest.raises(InputError, match="timed with --include network, and this with decode"):
        check_comparable(old, TEACHER, Protocol(rounds=4, include="decode"))


def test_another_machine_is_said() -> None:
    old = make_report([2.0] * 4)
    other = old.environment.model_copy(update={"cpu": "Y", "packages": {"torch": "3", "openvino": "1"}})
    assert list_differences(old, old) == []
    assert list_differences(old, old.model_copy(update={"environment": other})) == [
        "cpu was X, and is Y",
        "openvino was None, and is 1",
        "torch was 2, and is 3",
    ]


def test_the_shipped_schema_is_current() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "bench.schema.json").read_text(encoding="utf-8") == format_schema()


def test_a_report_is_read_back_and_another_layout_is_refused(tmp_path: Path) -> None:
    file, report = tmp_path / "old.json", make_report([2.0] * 4)
    data = report.model_dump(mode="json")
    file.write_text(json.dumps(data))
    assert read_report(file) == report
    file.write_text(json.dumps(data | {"schema_version": 1}))
    with pytest.raises(InputError, match=r"old\.json has format 1, of an earlier .* reads 2: write it again by"):
        read_report(file)
    file.write_text(json.dumps(data | {"results": [{}]}))
    with pytest.raises(InputError, match=r"is not what 'indistill bench --json' prints: results\.0\."):
        read_report(file)
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read: no JSON"):
        read_report(file)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_report(tmp_path / "none.json")
