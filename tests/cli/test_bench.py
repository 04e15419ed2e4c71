"""`indistill bench` as it is called: what it times, the page, and the exit code of --compare."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from indistill.cli.engines import TeacherChoice, choose_engines, list_engines, read_subjects
from indistill.errors import InputError, ModelError
from indistill.export.bench_report import BenchReport
from tests.cli.calls import make_environment, run_cli, succeed

Places = dict[str, Path]
QUICK = ("--rounds", 4, "--min-seconds", 0, "--batch", 1, "--threads", 1, "--engine", "onnxruntime")
REQUIRED = [kind for kind in ("pytorch", "onnxruntime", "openvino") if find_spec(kind.replace("py", "")) is not None]


def list_names(places: Places, *models: Path, kinds: tuple[str, ...] = ("pytorch", "onnxruntime")) -> list[tuple]:
    engines = list_engines(read_subjects(models), kinds, (), TeacherChoice())
    return [(engine.role, engine.kind, Path(engine.source).name) for engine in engines]


def test_by_default_every_engine_that_is_installed_is_taken_but_the_compiled_one() -> None:
    assert [kind for kind in choose_engines(None) if kind != "onnxruntime-cuda"] == REQUIRED
    assert choose_engines(["onnxruntime", "compiled"]) == ("compiled", "onnxruntime")
    with pytest.raises(InputError, match="--engine 'onnx' is not known: use pytorch, compiled, onnxruntime"):
        choose_engines(["onnx"])


def test_every_exported_file_beside_a_runs_weights_is_taken(places: Places, copy: Callable[[str], Path]) -> None:
    run = copy("run")
    shutil.copy(run / "student.onnx", run / "student_int8.onnx")
    assert list_names(places, run) == [
        ("teacher", "pytorch", "teacher"),
        ("student", "pytorch", "copied-run"),
        ("student", "onnxruntime", "student.onnx"),
        ("student", "onnxruntime", "student_int8.onnx"),
    ]
    assert list_names(places, run, kinds=("compiled",)) == [
        ("teacher", "pytorch", "teacher"),
        ("teacher", "compiled", "teacher"),
        ("student", "compiled", "copied-run"),
    ]


def test_of_files_alone_the_first_is_the_reference(places: Places) -> None:
    assert list_names(places, places["model"], kinds=("onnxruntime", "openvino")) == [
        ("student", "onnxruntime", "student.onnx"),
        ("student", "openvino", "student.onnx"),
    ]
    assert len(list_names(places, places["run"], places["model"], places["run"])) == 4
    with pytest.raises(InputError, match=r"an \.onnx file is not run by pytorch"):
        list_names(places, places["model"], kinds=("pytorch",))


def test_what_was_not_exported_says_how(places: Places, copy: Callable[[str], Path]) -> None:
    run = copy("run")
    (run / "student.onnx").unlink()
    with pytest.raises(InputError, match=r"there is no .*student\.onnx: write it by 'indistill export .* --onnx'"):
        list_names(places, run)
    assert len(list_names(places, run, kinds=("pytorch",))) == 2
    with pytest.raises(ModelError, match=r"there is no file .*nothing\.onnx"):
        list_names(places, places["none"].with_suffix(".onnx"))


@pytest.mark.slow
def test_two_benches_a_page_and_a_regression(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", make_environment()["PYTHONPATH"])
    page, old = places["here"] / "page.html", places["here"] / "old.json"
    files = [places["here"] / name for name in ("student.onnx", "student_b.onnx")]
    for file in files:
        shutil.copy(places["model"], file)
    first = succeed("bench", *files, *QUICK, "--json", "--data", places["queries"], "--html", page)
    report = BenchReport.model_validate_json(first.out)
    assert report.protocol.include == "network"
    quality = report.results[1].quality
    assert quality is not None
    assert (quality.images, quality.neighbour_overlap) == (20, 1)
    assert quality.map is not None
    assert 0.2 < quality.map <= 1
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "mAP %" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    # As if the second file had once been ten, or a thousandth, times as fast: beyond any machine's noise.
    for factor, code in ((1000.0, 1), (0.001, 0)):
        data = json.loads(first.out)
        speedup = data["results"][1]["speedup"]
        data["results"][1]["speedup"] = {
            name: [factor * r for r in value] if name == "rounds" else factor * value for name, value in speedup.items()
        }
        old.write_text(json.dumps(data))
        result = run_cli("bench", *files, *QUICK, "--data", places["queries"], "--compare", old)
        assert result.code == code, result.err
        assert ("slower" if code else "faster") in result.out
        if code:
            last = result.err.splitlines()[-1]
            assert last.startswith(f"indistill: error: slower than in {old}, beyond the noise of both: {files[1]} by")


def test_a_report_of_another_layout_is_refused_before_anything_is_timed(places: Places) -> None:
    old = places["here"] / "old.json"
    old.write_text('{"schema_version": 1}')
    result = run_cli("bench", places["run"], *QUICK, "--compare", old)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "has format 1, of an earlier indistill" in result.err
