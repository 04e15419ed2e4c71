"""`export --precision`: files side by side, a verdict, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from indistill.export import verify
from indistill.export.verdict import TimedFile, give_verdict
from tests.cli.calls import MAIN, STOP, assert_refused, run_cli, run_process, snapshot, succeed
from tests.cli.files import write_digits


@pytest.fixture(scope="module")
def exported(workspace: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Returns the folder of all three files, and what the command printed."""
    folder = tmp_path_factory.mktemp("precisions")
    arguments = ["--onnx", "--out", folder / "net.onnx", "--precision", "all", "--data", "digits/train", "--json"]
    return folder, json.loads(succeed("export", workspace["run"], *arguments).out)


def test_all_precisions_are_written_and_judged(exported: tuple[Path, dict]) -> None:
    folder, printed = exported
    names = ["net.onnx", "net_fp16.onnx", "net_int8.onnx"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "preprocessor_config.json"])
    assert [Path(file["file"]).name for file in printed["files"]] == names
    assert [file["precision"] for file in printed["files"]] == ["fp32", "fp16", "int8"]
    for file in printed["files"]:
        assert file["size_bytes"] == Path(file["file"]).stat().st_size
        assert file["verification"]["metric"] == "map"
        assert file["verification"]["quality"] > file["verification"]["reference_quality"] - 0.01
        assert file["verification"]["images"] > 500
    assert printed["files"][2]["quantisation"]["images"] == 256
    timed = printed["verdict"]["files"]
    assert timed[0]["speedup"] == 1
    assert all(file["latency_ms"] > 0 for file in timed)
    assert printed["verdict"]["sentence"].endswith(".")


def test_a_file_that_takes_decoded_images_needs_onnxruntime_and_pillow_alone(exported: tuple[Path, dict]) -> None:
    folder, _ = exported
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 91, 3), dtype=np.uint8))
    for name in ("net.onnx", "net_fp16.onnx", "net_int8.onnx"):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        (vectors,) = session.run(None, {"image": np.asarray(image)[None]})
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["net_fp16.onnx", "net_int8.onnx"])
def test_other_precisions_are_indexed_and_searched(
    exported: tuple[Path, dict], workspace: dict[str, Path], tmp_path: Path, name: str
) -> None:
    succeed("index", "build", workspace["gallery"], "--model", exported[0] / name, "--out", tmp_path / "index")
    printed = json.loads(succeed("search", tmp_path / "index", workspace["query"], "-k", 1, "--json").out)
    assert printed


@pytest.mark.slow
def test_the_table_ends_with_the_verdict(workspace: dict[str, Path], tmp_path: Path) -> None:
    result = succeed(
        "export",
        workspace["run"],
        "--onnx",
        "--out",
        tmp_path / "q.onnx",
        "--precision",
        "int8",
        "--data",
        "digits/train",
    )
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["preprocessor_config.json", "q.onnx"]
    assert result.out.splitlines()[-1].startswith("Verdict: int8 is ")
    assert "fp32" in result.out  # what it is compared with, though it is not kept


@pytest.mark.slow
def test_a_precision_that_fails_a_gate_is_refused_and_the_others_stay(
    workspace: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(verify.LIMITS["int8"], min_overlap=1.01)
    monkeypatch.setitem(verify.LIMITS, "int8", limits)
    arguments = ["--onnx", "--out", tmp_path / "net.onnx", "--data", "digits/train", "--precision", "all"]
    result = run_cli("export", workspace["run"], *arguments)
    assert result.code == 1
    assert "error: the int8 file does not agree with PyTorch and was not kept: overlap of the ten nearest" in result.err
    assert "int8 does not pass its gates" in result.out
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"net.onnx", "net_fp16.onnx"}
    arguments[2], arguments[-1] = tmp_path / "alone.onnx", "int8"
    alone = run_cli("export", workspace["run"], *arguments)
    assert alone.code == 1
    assert alone.out == ""
    assert "the int8 file does not agree with PyTorch" in alone.err
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"net.onnx", "net_fp16.onnx"}


def test_bad_usage_is_refused(workspace: dict[str, Path], tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.mkdir()
    generator = np.random.default_rng(0)
    for i in range(130):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(noise / f"{i:03}.png")
    before = snapshot(tmp_path)
    export = ["export", workspace["run"], "--onnx", "--out", tmp_path / "q.onnx"]
    int8 = [*export, "--precision", "int8"]
    assert_refused(run_cli(*export, "--calibrate", "digits/test"), "--calibrate is of int8")
    assert_refused(run_cli(*int8, "--calibrate", noise), "look like noise", "--calibrate")
    for path in sorted(noise.iterdir())[100:]:
        path.unlink()
        before.pop(f"noise/{path.name}")
    assert_refused(run_cli(*int8, "--calibrate", noise), "128 readable images at least, not 100")
    assert snapshot(tmp_path) == before


def test_another_models_preprocessing_is_not_replaced(workspace: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    export = ["export", workspace["run"], "--onnx", "--out", tmp_path / "s.onnx"]
    assert_refused(run_cli(*export), "preprocessor_config.json describes another preprocessing")
    succeed(*export, "--overwrite")
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["do_resize"] is True


FULL = TimedFile("fp32", "s.onnx", 4000, 2.0, 1, 1, 1, "map", 0)


def make_int8(speedup: float, low: float, high: float) -> TimedFile:
    return TimedFile("int8", "s_int8.onnx", 1000, 2 / speedup, speedup, low, high, "map", 0.004)


def test_the_verdict_says_what_to_ship() -> None:
    assert give_verdict([FULL, make_int8(2.8, 2.6, 2.9)]) == (
        "int8 is 2.80 times as fast as float32 here (2.60 to 2.90), with 0.25 of its size, and loses 0.0040 of map; "
        "ship s_int8.onnx."
    )
    slower = give_verdict([FULL, make_int8(0.6, 0.5, 0.7)])
    assert "int8 is slower than float32 here, 0.60 times its speed (0.50 to 0.70)" in slower
    assert "keep float32, s.onnx, unless the size of the file matters more than its speed: then s_int8.onnx." in slower
    unclear = give_verdict([FULL, make_int8(1.2, 0.9, 1.3)])
    assert "about as fast as float32 here (0.90 to 1.30)" in unclear
    assert "keep float32" in unclear
    refused = give_verdict([FULL], ["int8"])
    assert refused == "int8 does not pass its gates; keep float32, s.onnx."


@pytest.mark.slow
def test_what_is_written_is_reported_where_there_is_no_verdict(
    workspace: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(verify.LIMITS, "fp32", replace(verify.LIMITS["fp32"], max_difference=0))
    arguments = ["--onnx", "--out", tmp_path / "net.onnx", "--data", "digits/train", "--precision", "all", "--json"]
    result = run_cli("export", workspace["run"], *arguments)
    printed = json.loads(result.out)
    assert result.code == 1
    assert [file["precision"] for file in printed["files"]] == ["fp16", "int8"]
    assert printed["verdict"] is None
    assert list(printed["refused"]) == ["fp32"]
    assert "no verdict: the fp32 file does not agree with PyTorch" in result.err


@pytest.mark.slow
def test_the_gates_look_at_no_more_images_than_asked_for(workspace: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["--onnx", "--out", tmp_path / "q.onnx", "--data", "digits/train", "--gate-images", 40, "--json"]
    (file,) = json.loads(succeed("export", workspace["run"], *arguments, "--precision", "int8").out)["files"]
    assert file["verification"]["images"] == 40
    assert file["quantisation"]["images"] == 256


def test_the_verdict_of_a_file_that_finds_more_says_so() -> None:
    better = replace(make_int8(2.8, 2.6, 2.9), drop=-0.0007)
    assert "with 0.25 of its size, and gains 0.0007 of map; " in give_verdict([FULL, better])
    assert "and loses 0.0000 of map; " in give_verdict([FULL, replace(better, drop=-0.00001)])


def test_an_image_that_is_skipped_twice_is_named_once(workspace: dict[str, Path], tmp_path: Path) -> None:
    images = write_digits(tmp_path / "images", 0, 15)
    (sorted(images.iterdir())[0] / "broken.png").write_bytes(b"none")
    arguments = ["--onnx", "--out", tmp_path / "q.onnx", "--precision", "int8", "--data", images]
    result = run_cli("export", workspace["run"], *arguments, "--calibrate", images)
    assert result.err.count("1 image was skipped") == 1
    assert "128 readable images at least, not 75" in result.err  # both were read


@pytest.mark.slow
def test_ctrl_c_says_which_files_were_written(workspace: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["export", workspace["run"], "--onnx", "--out", tmp_path / "q.onnx", "--data", "digits/train"]
    interrupt = f"{STOP}import indistill.export.onnx as onnx; write = onnx.Exporter.write\n"
    later = "def stop_later(*given, **options): onnx.Exporter.write = stop; return write(*given, **options)\n"
    first = run_process(*arguments, code=f"{interrupt}onnx.Exporter.write = stop\n{MAIN}")
    assert (first.code, first.out) == (130, "")
    assert first.err.endswith("interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())
    code = f"{interrupt}{later}onnx.Exporter.write = stop_later\n{MAIN}"
    second = run_process(*arguments, "--precision", "all", code=code)
    assert second.err.endswith(f"interrupted; {tmp_path / 'q.onnx'} was written, and no other\n"), second.err
