"""`compare`: runs side by side, with the metrics kept beside them."""

import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.cli.calls import assert_refused, run_cli, succeed
from tests.cli.files import list_files, write_truncated_jpeg
from tests.cli.test_data_specs import write_form

Places = dict[str, Path]
FAST = ("--no-latency", "--json")


@pytest.fixture
def runs(places: Places) -> list[Path]:
    """Returns four runs, of two losses' scales and two seeds, whose weights differ by a little noise."""
    made = []
    for scale in (1000.0, 10.0):
        for seed in (0, 1):
            run = places["here"] / f"run-{scale:g}-{seed}"
            shutil.copytree(places["run"], run)
            (run / "student.onnx").unlink()
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            config["seed"], config["recipe"]["loss"]["scale"] = seed, scale
            (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
            spoil(run, seed + int(scale), 0.3 if scale == 10 else 0.1)
            made.append(run)
    return made


def spoil(run: Path, seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    state = load_file(run / "student.safetensors")
    noisy = {
        name: value + strength * value.std() * torch.randn(value.shape, generator=generator)
        if value.dim() > 1
        else value
        for name, value in state.items()
    }
    save_file(noisy, run / "student.safetensors")


def compare(*arguments: object) -> dict[str, Any]:
    return json.loads(succeed("compare", *arguments, "--json").out)


def name_sets(places: Places) -> tuple[object, ...]:
    return ("--gallery", places["gallery"], "--queries", places["queries"])


def test_groups_hold_the_metrics_of_evaluate_with_their_spread_and_paired_differences(
    places: Places, runs: list[Path]
) -> None:
    standings = compare(*runs, *name_sets(places), "--no-latency")
    scores = [
        json.loads(succeed("evaluate", "--model", run, *name_sets(places), "--json").out)["cosine"]["map"]
        for run in runs
    ]
    first, second = standings["groups"]
    assert (first["name"], second["name"]) == ("loss.scale=1000.0", "loss.scale=10.0")
    assert first["runs"] == {"0": str(runs[0]), "1": str(runs[1])}
    for group, values in ((first, scores[:2]), (second, scores[2:])):
        found = group["figures"]["cosine.map"]
        assert found == pytest.approx({"mean": statistics.mean(values), "std": statistics.stdev(values), "count": 2})
        assert group["figures"]["parameters"]["mean"] == 15050
    differences = [scores[2] - scores[0], scores[3] - scores[1]]
    found = second["differences"]["cosine.map"]
    assert found["mean"] == pytest.approx(statistics.mean(differences))
    half = 12.7062 * statistics.stdev(differences) / 2**0.5  # t(0.975, 1)
    assert (found["low"], found["high"]) == pytest.approx((found["mean"] - half, found["mean"] + half), rel=1e-4)
    assert first["differences"] == {}


def test_a_second_call_reads_what_the_first_one_kept(places: Places, runs: list[Path]) -> None:
    run = runs[0]
    first = compare(run, *name_sets(places), "--no-latency")
    (kept,) = run.glob("evaluation-*.json")
    content = json.loads(kept.read_text(encoding="utf-8"))
    assert content["metrics"]["cosine"]["map"] == first["groups"][0]["figures"]["cosine.map"]["mean"]
    content["metrics"]["cosine"]["map"] = 0.125
    kept.write_text(json.dumps(content), encoding="utf-8")
    again = compare(run, *name_sets(places), "--no-latency")
    assert again["groups"][0]["figures"]["cosine.map"]["mean"] == 0.125
    assert list(run.glob("evaluation-*")) == [kept]


@pytest.mark.parametrize("changed", ["weights", "gallery", "the file itself"])
def test_what_was_kept_is_not_taken_for_something_else(places: Places, runs: list[Path], changed: str) -> None:
    run, gallery = runs[0], shutil.copytree(places["gallery"], places["here"] / "gallery")
    sets = ("--gallery", gallery, "--queries", places["queries"], "--no-latency")
    compare(run, *sets)
    (kept,) = run.glob("evaluation-*.json")
    kept.write_text(kept.read_text(encoding="utf-8").replace('"map":', '"map": 0.125, "was":'), encoding="utf-8")
    if changed == "weights":
        spoil(run, 5, 0.2)
    elif changed == "gallery":
        next(gallery.rglob("*.png")).unlink()
    else:
        kept.write_text(kept.read_text(encoding="utf-8")[:100], encoding="utf-8")
    found = compare(run, *sets)["groups"][0]["figures"]["cosine.map"]["mean"]
    assert found == json.loads(succeed("evaluate", "--model", run, *sets[:4], "--json").out)["cosine"]["map"]


def test_a_run_in_memory_is_kept_apart_by_its_images(runs: list[Path]) -> None:
    for gallery in ("digits/test", "digits"):
        compare(runs[0], "--gallery", gallery, "--queries", "digits/test", "--no-latency")
    assert len(list(runs[0].glob("evaluation-*.json"))) == 2


def test_a_manifest_may_name_a_missing_file(places: Places, runs: list[Path]) -> None:
    rows = [f"{path},{path.parent.name}\n" for path in list_files(places["gallery"])]
    manifest, missing = places["here"] / "gallery.csv", places["here"] / "missing.png"
    manifest.write_text(f"path,label\n{missing},one\n{''.join(rows)}", encoding="utf-8")
    sets = ("--gallery", manifest, "--queries", places["queries"], "--no-latency")
    result = succeed("compare", runs[0], *sets, "--json")
    assert "warning: 1 image was skipped:" in result.err
    assert f"{places['here'].name}/missing.png: no such file" in result.err
    expected = compare(runs[0], *name_sets(places), "--no-latency")["groups"][0]["figures"]["cosine.map"]
    assert json.loads(result.out)["groups"][0]["figures"]["cosine.map"] == expected
    shutil.copy(list_files(places["queries"])[0], missing)  # what was kept without it does not hold any more
    assert "skipped" not in succeed("compare", runs[0], *sets, "--json").err
    assert len(list(runs[0].glob("evaluation-*.json"))) == 3


@pytest.mark.parametrize("form", ["shards", "saved"])
def test_a_damaged_image_in_shards_or_a_saved_set_is_skipped(places: Places, runs: list[Path], form: str) -> None:
    gallery = shutil.copytree(places["gallery"], places["here"] / "gallery")
    write_truncated_jpeg(gallery / "one" / "a damaged.jpg")
    data = write_form(form, gallery, places["here"] / form)
    result = succeed("compare", runs[0], "--gallery", data, "--queries", places["queries"], *FAST)
    assert "warning: 1 image was skipped:" in result.err
    assert "damaged image" in result.err
    found = json.loads(result.out)["groups"][0]["figures"]["cosine.map"]["mean"]
    expected = compare(runs[0], *name_sets(places), "--no-latency")["groups"][0]["figures"]["cosine.map"]["mean"]
    assert found == pytest.approx(expected)


def test_a_row_without_an_image_is_skipped(places: Places, runs: list[Path]) -> None:
    import datasets

    datasets.disable_progress_bars()
    files = list_files(places["gallery"])
    cells = [None, *({"bytes": file.read_bytes(), "path": None} for file in files)]
    labels = ["one", *(file.parent.name for file in files)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    saved = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    saved.save_to_disk(str(places["here"] / "saved"))
    line = ("compare", runs[0], "--gallery", places["here"] / "saved", "--queries", places["queries"], *FAST)
    result = succeed(*line)
    assert "warning: 1 image was skipped:" in result.err
    assert "no image in this row" in result.err
    assert succeed(*line).out == result.out


def test_without_images_the_runs_say_what_they_hold(places: Places) -> None:
    result = succeed("compare", places["run"], places["teacher"], "--no-latency")
    header = re.split(r"\s{2,}", result.out.splitlines()[1].strip())
    assert header == ["group", "seeds", "neighbour overlap", "to the baseline", "last loss", "parameters", "weights MB"]
    rows = [re.split(r"\s{2,}", line.strip()) for line in result.out.splitlines()[3:]]
    closeness = json.loads((places["run"] / "closeness.json").read_text(encoding="utf-8"))
    assert rows[0][2] == f"{closeness['student']['neighbour_overlap']:.3f}"
    assert [row[1] for row in rows] == ["1", "1"]
    assert rows[1][2] == "-"
    assert "command=train" in rows[1][0]


def test_closeness_of_other_weights_is_not_shown(runs: list[Path]) -> None:
    assert "neighbour_overlap" not in compare(runs[0], "--no-latency")["groups"][0]["figures"]  # noise was added since


def test_closeness_on_different_images_is_left_out_with_a_warning(places: Places, runs: list[Path]) -> None:
    for run, data in zip(runs[1:3], ("loose", "queries"), strict=True):
        succeed("report", run, "--data", places[data])
    result = succeed("compare", *runs[1:3], *FAST)
    assert "warning: closeness was measured on different images" in result.err
    assert "neighbour_overlap" not in json.loads(result.out)["groups"][0]["figures"]
    succeed("report", runs[1], "--data", places["queries"])
    assert "neighbour_overlap" in compare(*runs[1:3], "--no-latency")["groups"][0]["figures"]


@pytest.mark.slow
def test_the_page_holds_the_table_and_the_plots(places: Places, runs: list[Path]) -> None:
    page = places["here"] / "page.html"
    line = ("compare", *name_sets(places), "--html", page, "--threads", 1)
    result = succeed(*line, *runs[:2])
    assert f"wrote {page}" in result.err
    assert "latency ms" in result.out
    text = page.read_text(encoding="utf-8")
    for words in ("paper:cnn-s", "Quality against cost", "median of one image by pytorch", str(runs[1])):
        assert words in text
    assert text.count("<svg") == 1
    assert_refused(run_cli(*line, *runs), f"{page} exists; choose another --html, or replace it with --overwrite")
    succeed(*line, *runs, "--no-latency", "--overwrite")
    text = page.read_text(encoding="utf-8")
    assert "loss.scale=1000.0" in text
    assert "latency" not in text.split("<svg")[0]


def test_names_in_the_page_are_escaped(places: Places, runs: list[Path]) -> None:
    config = (runs[0] / "config.yaml").read_text(encoding="utf-8")
    name = "<img src=x onerror=alert(1)> $x^ $"  # which is neither HTML nor mathematics
    (runs[0] / "config.yaml").write_text(config.replace("data: digits/train", f"data: '{name}'"), encoding="utf-8")
    page = places["here"] / "page.html"
    succeed("compare", *runs[:2], *name_sets(places), "--no-latency", "--html", page)
    text = page.read_text(encoding="utf-8")
    assert "data=&lt;img src=x" in text
    assert "<img" not in text


@pytest.mark.slow
def test_an_exported_run_is_timed_by_onnx_runtime(places: Places) -> None:
    latency = compare(places["run"], "--threads", 1)["latency"]
    assert latency["engine"] == "onnxruntime"
    assert latency["latency_ms"]["paper:cnn-s"] > 0
    assert not any("teacher" in warning for warning in latency["warnings"])


def test_a_baseline_may_be_named_by_its_group_or_a_run(runs: list[Path]) -> None:
    for name in ("loss.scale=10.0", runs[3]):
        standings = compare(*runs, "--baseline", name, "--no-latency")
        assert standings["baseline"] == "loss.scale=10.0"
        assert standings["groups"][1]["differences"] == {}
    assert_refused(run_cli("compare", *runs, "--baseline", "x", *FAST), "--baseline 'x' is neither")


def test_bad_input_is_named(places: Places, runs: list[Path]) -> None:
    assert_refused(run_cli("compare", places["none"], *FAST), f"{places['none']} is not a run folder")
    assert_refused(run_cli("compare", runs[0], runs[0], *FAST), "have the same configuration and seed 0")
    assert_refused(
        run_cli("compare", runs[0], "--gallery", places["gallery"], *FAST), "name both --gallery and --queries"
    )
    assert_refused(
        run_cli("compare", runs[0], "--gallery", places["loose"], "--queries", places["queries"], *FAST),
        "has no classes; compare needs a sub-folder",
    )
    (runs[1] / "student.safetensors").unlink()
    assert_refused(run_cli("compare", *runs, *FAST), f"{runs[1]} is not complete")
