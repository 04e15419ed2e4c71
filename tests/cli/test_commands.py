"""What each command writes and prints when it goes well: data on standard output, talk on standard error."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.calls import MAIN, REPOSITORY, Result, fill, make_environment, run_cli, run_process, succeed
from tests.cli.files import CLASSES

Places = dict[str, Path]
Copy = Callable[[str], Path]

COMPRESS = "compress --student paper:cnn-s --data {loose} --recipe digits --epochs 5 --out {out}"
COMPRESS_RUN = COMPRESS + " --teacher {teacher}"
TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 2 --out {out}"
STAGE_PAIRS = ["stage1:stage1", "stage2:stage2", "stage3:stage3"]
METRICS = ["map", "map_paper11", "map@r", "r_precision"]
METRICS += [f"{name}@{k}" for name in ("precision", "recall") for k in (1, 5, 10, 100)]


def read_config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def read_records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_student(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def strip_styles(text: str) -> str:
    """Returns text without the codes that Typer puts in where it believes to be seen, as in GitHub's CI."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def hash_bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


COMMANDS = ["train", "compress", "report", "compare", "export", "info", "pack", "push", "pull"]
COMMANDS += ["bench", "index", "search", "dedupe", "evaluate", "serve", "plan", "demo", "doctor"]


OF_INDEX = ("build", "add", "sync", "remove", "info", "verify", "rebuild", "compact", "merge", "push")


@pytest.mark.parametrize(
    "command", ["", *COMMANDS, *(f"index {name}" for name in OF_INDEX)], ids=lambda name: name or "indistill"
)
def test_every_command_has_a_help_page(command: str) -> None:
    result = succeed(*command.split(), "--help")
    assert " ".join(["Usage: indistill", *command.split()]) in strip_styles(result.out)
    assert result.err == ""


def test_the_help_page_lists_every_command() -> None:
    listed = re.findall(r"^│ (\w+) ", strip_styles(succeed("--help").out).split("Commands")[1], flags=re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_the_version_is_that_of_the_project() -> None:
    declared = re.search(
        r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert declared is not None
    assert succeed("--version").out == f"indistill {declared[1]}\n"


def test_train_writes_a_complete_run_and_prints_its_folder(places: Places) -> None:
    result = succeed(*fill(TRAIN, places))
    assert result.out == f"{places['out']}\n"
    assert result.err.splitlines()[-2:] == [
        f"Next: indistill compress --teacher {places['out']} --data IMAGES --out RUN",
        f"  or: indistill export {places['out']} --onnx",
    ]
    names = {"config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "report.html", "lock"}
    assert {path.name for path in places["out"].iterdir()} == names
    config = read_config(places["out"])
    assert (config["command"], config["data"]) == ("train", str(places["gallery"]))
    assert config["network"]["arguments"]["num_classes"] == len(CLASSES)


def test_train_learns_the_digits(workspace: Places) -> None:
    losses = [record["loss"] for record in read_records(workspace["teacher"])]
    assert losses[-1] < losses[0] / 4


def test_train_starts_from_the_weights_that_are_given(places: Places) -> None:
    weights = "--data digits/test --epochs 2 --lr 1e-8 --model paper:cnn-a --weights {teacher}/model.safetensors"
    succeed(*fill(f"{TRAIN} {weights}", places))
    assert read_records(places["out"])[0]["loss"] < 2 * read_records(places["teacher"])[-1]["loss"]


def test_compress_writes_a_complete_run_and_prints_its_folder(places: Places) -> None:
    result = succeed(*fill(COMPRESS_RUN, places))
    assert result.out == f"{places['out']}\n"
    assert result.err.splitlines()[-1] == f"Next: indistill export {places['out']} --onnx"
    names = {"config.yaml", "environment.json", "metrics.jsonl", "student.safetensors", "report.html", "closeness.json"}
    assert {path.name for path in places["out"].iterdir()} == names | {"lock"}
    config = read_config(places["out"])
    assert config["pairs"] == STAGE_PAIRS
    assert [phase["objective"] for phase in config["schedule"]] == ["stage"] * 3 + ["embedding"] * 2
    assert config["teacher"]["spec"] == "paper:cnn-a"
    assert config["teacher"]["weights_sha256"] == hash_bytes(places["teacher"] / "model.safetensors")
    assert {path.name for path in places["here"].iterdir()} == {"out"}


def test_a_run_names_its_teacher_so_that_it_is_found_from_any_folder(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places["teacher"].parent)
    succeed(*fill(f"{COMPRESS} --teacher teacher", places))
    teacher = read_config(places["out"])["teacher"]
    assert Path(teacher["source"]).is_absolute()
    assert places["teacher"].samefile(teacher["source"])
    assert (places["teacher"] / "model.safetensors").samefile(teacher["weights"])


@pytest.mark.slow
def test_a_run_is_exported_from_any_folder(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(places["loose"].parent)
    succeed(*fill(COMPRESS_RUN.replace("{loose}", "loose"), places))
    monkeypatch.chdir(places["here"])
    succeed("export", "out", "--onnx")
    assert (places["out"] / "student.onnx").is_file()


def test_faithful_sets_the_side_effects_of_the_published_code(places: Places) -> None:
    succeed(*fill(COMPRESS_RUN + " --faithful", places))
    recipe = read_config(places["out"])["recipe"]
    assert recipe["optimiser"]["restart"] == "epoch"
    assert recipe["loss"]["scale"] == 1
    assert recipe["targets"]["statistics"] == "batch"


def test_without_warm_up_the_embedding_alone_is_distilled(places: Places) -> None:
    succeed(*fill(COMPRESS_RUN + " --no-warm-up", places))
    config = read_config(places["out"])
    assert config["pairs"] == []
    assert {phase["objective"] for phase in config["schedule"]} == {"embedding"}
    assert sum(phase["epochs"] for phase in config["schedule"]) == 5


@pytest.mark.slow
def test_named_pairs_distil_a_teacher_whose_stages_are_not_known(places: Places) -> None:
    pairs = ["layer1:stage1", "layer2:stage2"]
    options = " ".join(f"--pair {pair}" for pair in pairs)
    result = succeed(*fill(f"{COMPRESS} --teacher torchvision:resnet18 {options}", places))
    assert "warning: the teacher 'torchvision:resnet18' has random weights" in result.err
    config = read_config(places["out"])
    assert config["pairs"] == pairs
    assert [phase["stage"] for phase in config["schedule"]] == [1, 2, 0, 0]


def test_epochs_scale_the_whole_schedule_and_the_schedule_is_what_is_trained(places: Places) -> None:
    succeed(*fill(COMPRESS_RUN + " --epochs 16", places))
    schedule = read_config(places["out"])["schedule"]
    assert sum(phase["epochs"] for phase in schedule) == 16
    assert max(schedule, key=lambda phase: phase["epochs"])["objective"] == "embedding"
    trained = [(record["phase"], record["lr"]) for record in read_records(places["out"])]
    assert trained == [(phase["name"], phase["lr"]) for phase in schedule for _ in range(phase["epochs"])]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_student_byte_for_byte_and_another_one_does_not(places: Places) -> None:
    def distil(name: str, seed: int, run: Callable[..., Result]) -> bytes:
        result = run(*fill(COMPRESS_RUN, places), "--seed", seed, "--out", places["here"] / name)
        assert result.code == 0, result.err
        return read_student(places["here"] / name)

    first = distil("first", 3, run_cli)
    again, other = distil("again", 3, run_process), distil("other", 4, run_cli)
    assert (first == again, first == other) == (True, False)  # no letter-by-letter comparison of what differs


@pytest.mark.slow
def test_a_teacher_by_spec_and_weights_teaches_as_its_run_does(places: Places) -> None:
    weights = load_file(places["teacher"] / "model.safetensors")
    parallel = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}
    torch.save(weights, places["here"] / "plain.pt")
    torch.save(parallel, places["here"] / "parallel.pth")
    succeed(*fill(COMPRESS_RUN, places))
    for name in ("plain.pt", "parallel.pth"):
        options = f"--teacher paper:cnn-a --teacher-weights {{here}}/{name} --out {{here}}/by-{name}"
        succeed(*fill(f"{COMPRESS} {options}", places))
        assert read_student(places["here"] / f"by-{name}") == read_student(places["out"])


def test_settings_are_recorded_and_go_before_the_options(places: Places) -> None:
    succeed(*fill(COMPRESS_RUN + " --lr 0.002 --batch-size 4 --set data.batch_size=8 --set loss.scale=1e2", places))
    recipe = read_config(places["out"])["recipe"]
    assert recipe["data"]["batch_size"] == 8
    assert recipe["loss"]["scale"] == 100
    assert recipe["optimiser"]["lr"] == 0.002
    assert recipe["optimiser"]["final_lr"] == pytest.approx(0.0002)


def test_a_recipe_file_is_read_like_a_shipped_recipe(places: Places) -> None:
    (places["here"] / "mine.yaml").write_text("data: {image_size: 24, batch_size: 5}\nloss: {scale: 7}\n")
    succeed(*fill(COMPRESS.replace("digits", "{here}/mine.yaml") + " --teacher paper:cnn-a", places))
    recipe = read_config(places["out"])["recipe"]
    assert (recipe["data"]["image_size"], recipe["data"]["batch_size"], recipe["loss"]["scale"]) == (24, 5, 7)


def test_overwrite_replaces_a_run_and_leaves_nothing_of_it(places: Places, copy: Copy) -> None:
    run = copy("run")
    succeed(*fill(COMPRESS_RUN.replace("{out}", "{copied_run}") + " --seed 9 --overwrite", places))
    assert read_config(run)["seed"] == 9
    assert not (run / "student.onnx").exists()
    assert {path.name for path in places["here"].iterdir()} == {"copied-run"}


@pytest.mark.slow
def test_the_recipe_of_a_run_repeats_it(places: Places) -> None:
    succeed(*fill(COMPRESS_RUN + " --set loss.scale=10 --lr 0.003", places))
    recipe = read_config(places["out"])["recipe"]
    (places["here"] / "again.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    succeed(*fill(COMPRESS_RUN.replace("digits", "{here}/again.yaml").replace("{out}", "{here}/again"), places))
    assert read_student(places["here"] / "again") == read_student(places["out"])


def test_export_writes_beside_the_students_weights_by_default(places: Places, copy: Copy) -> None:
    run = copy("run")
    (run / "student.onnx").unlink()
    before = {path.name for path in run.iterdir()}
    result = succeed("export", run, "--onnx")
    assert {path.name for path in run.iterdir()} == before | {"student.onnx"}
    assert result.out.startswith(f"{run / 'student.onnx'}  ")
    assert result.err == f"Next: indistill index build IMAGES --model {run / 'student.onnx'} --out INDEX\n"


def test_an_export_is_the_same_byte_for_byte_when_repeated(places: Places, copy: Copy) -> None:
    run = copy("run")
    assert (run / "student.onnx").read_bytes() == places["model"].read_bytes()
    (run / "student.onnx").write_bytes(b"older")
    succeed("export", run, "--onnx", "--overwrite")
    assert (run / "student.onnx").read_bytes() == places["model"].read_bytes()


def test_export_describes_the_file_as_json(places: Places) -> None:
    target = places["here"] / "new" / "model.onnx"
    result = succeed("export", places["run"], "--onnx", "--out", target, "--data", places["loose"], "--json")
    described = json.loads(result.out)
    assert list(described) == [
        "file",
        "size_bytes",
        "sha256",
        "embedding_dim",
        "precision",
        "input",
        "preprocessing",
        "quantisation",
        "verification",
    ]
    assert described["file"] == str(target)
    assert described["size_bytes"] == target.stat().st_size
    assert described["sha256"] == hash_bytes(target)
    assert described["embedding_dim"] == 64
    assert described["preprocessing"]["image_size"] == 32
    assert described["verification"]["max_difference"] <= 1e-5
    assert described["verification"]["min_cosine"] >= 0.99999
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.onnx", "preprocessor_config.json"]
    assert result.err == ""


def test_random_weights_are_pointed_out(places: Places) -> None:
    line = "export paper:cnn-s --onnx --out {out}.onnx --recipe digits --data {loose}"
    assert "warning: the model 'paper:cnn-s' has random weights: name its weights" in succeed(*fill(line, places)).err
    weights = places["run"] / "student.safetensors"
    assert "warning" not in succeed(*fill(line, places), "--weights", weights, "--overwrite").err


def test_a_setting_of_export_changes_the_runs_own_preprocessing(places: Places) -> None:
    result = succeed("export", places["run"], "--onnx", "--out", places["out"], "--set", "data.crop=0.5", "--json")
    own = read_config(places["run"])["recipe"]["data"]
    described = json.loads(result.out)["preprocessing"]
    assert described["crop"] == 0.5
    assert {name: described[name] for name in ("image_size", "mean", "std")} == {
        name: own[name] for name in ("image_size", "mean", "std")
    }


@pytest.mark.slow
def test_bench_prints_its_figures_as_json(workspace: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", make_environment()["PYTHONPATH"])
    options = ("--rounds", 1, "--min-seconds", 0, "--batch", 1, "--threads", 1, "--json")
    options += ("--engine", "pytorch", "--engine", "onnxruntime")
    figures = json.loads(succeed("bench", workspace["run"], *options).out)
    assert {"schema_version", "environment", "warnings", "protocol", "results"} <= set(figures)
    assert figures["protocol"]["rounds"] == 1
    assert figures["protocol"]["threads"] == [1]
    engines = [(result["role"], result["engine"]) for result in figures["results"]]
    assert engines == [("teacher", "pytorch"), ("student", "pytorch"), ("student", "onnxruntime")]
    teacher, student, exported = figures["results"]
    assert (teacher["parameters"], student["parameters"]) == (57_994, 15_050)
    assert exported["sha256"] == hash_bytes(workspace["model"])
    assert teacher["speedup"] == {"p50": 1, "low": 1, "high": 1, "rounds": [1]}
    for result in figures["results"]:
        assert (result["batch"], result["threads"], result["image_size"]) == (1, 1, 32)
        assert 0 < result["latency_ms"]["min"] <= result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
        assert result["throughput_images_per_s"] > 0


def test_index_build_and_info_print_the_same_manifest(places: Places) -> None:
    built = succeed("index", "build", places["gallery"], "--model", places["model"], "--out", places["out"], "--json")
    manifest = json.loads(built.out)
    assert manifest["items"] == 40
    assert manifest["dimension"] == 64
    assert manifest["factory"] == "IDMap,Flat"
    assert manifest["metric"] == "inner_product"
    assert manifest["model_sha256"] == hash_bytes(places["model"])
    assert manifest["generation"] == 1
    assert manifest["skipped"] == 0
    assert manifest["root"] == str(places["gallery"].resolve())
    assert json.loads(succeed("index", "info", places["out"], "--json").out) == manifest
    assert {path.name for path in places["here"].iterdir()} == {"out"}


def test_index_info_prints_text_too(workspace: Places) -> None:
    lines = succeed("index", "info", workspace["index"]).out.splitlines()
    assert lines[0].startswith(f"{workspace['index']}: 40 images, 64 dimensions, IDMap,Flat, generation 1")
    assert str(workspace["gallery"].resolve()) in lines[1]
    assert hash_bytes(workspace["model"]) in lines[2]


def test_index_build_with_overwrite_replaces_an_index_whole(places: Places, copy: Copy) -> None:
    index = copy("index")
    succeed("index", "build", places["loose"], "--model", places["model"], "--out", index, "--overwrite")
    assert json.loads(succeed("index", "info", index, "--json").out)["items"] == 20
    assert {path.name for path in places["here"].iterdir()} == {"copied-index"}


def test_an_index_can_be_rebuilt_with_its_own_copy_of_the_model(places: Places, copy: Copy) -> None:
    index = copy("index")
    model = index / "generations" / "00000001" / "model.onnx"
    succeed("index", "build", places["loose"], "--model", model, "--out", index, "--overwrite")
    assert model.with_name("..").joinpath("00000002", "model.onnx").read_bytes() == places["model"].read_bytes()


def test_an_index_of_images_without_classes_has_no_labels(places: Places) -> None:
    succeed("index", "build", places["loose"], "--model", places["model"], "--out", places["out"])
    (found,) = json.loads(succeed("search", places["out"], places["query"], "--json").out)["queries"]
    assert {hit["label"] for hit in found["hits"]} == {None}


def evaluate(places: Places, line: str) -> dict[str, Any]:
    return json.loads(succeed(*fill(f"evaluate {line} --queries {{queries}} --json", places)).out)


BY_MODEL = {
    "run": "--model {run}",
    "spec and weights": "--model paper:cnn-s --weights {run}/student.safetensors --recipe digits",
    "ONNX file": "--model {model}",
}


def test_evaluate_gives_every_metric_as_a_fraction(workspace: Places) -> None:
    figures = evaluate(workspace, "{index}")
    assert {"cosine", "euclidean", "queries", "skipped"} < set(figures)
    assert (figures["queries"], figures["skipped"]) == (20, 0)
    for metric in ("cosine", "euclidean"):
        assert set(METRICS) <= set(figures[metric])
        assert all(0 <= value <= 1 for value in figures[metric].values())
        assert figures[metric]["map"] > 0.5  # trained; chance is 0.2
        recalls = [figures[metric][f"recall@{k}"] for k in (1, 5, 10, 100)]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 1
        assert figures[metric]["precision@100"] == pytest.approx(8 / 100)


@pytest.mark.parametrize("line", BY_MODEL.values(), ids=BY_MODEL)
def test_an_index_is_as_good_as_the_model_that_it_was_made_with(workspace: Places, line: str) -> None:
    deployed, by_model = evaluate(workspace, "{index}"), evaluate(workspace, line + " --gallery {gallery}")
    assert by_model["queries"] == deployed["queries"]
    for name in METRICS:
        assert by_model["cosine"][name] == pytest.approx(deployed["cosine"][name], abs=1e-3)


def test_evaluate_takes_other_ks(workspace: Places) -> None:
    figures = evaluate(workspace, "{index} -k 3 -k 2 -k 3")["cosine"]
    assert [name for name in figures if name.startswith("recall@")] == ["recall@2", "recall@3"]
    assert [name for name in figures if name.startswith("precision@")] == ["precision@2", "precision@3"]


def test_queries_of_a_class_that_the_gallery_has_not_are_skipped_and_counted(places: Places, copy: Copy) -> None:
    queries = copy("queries")
    (queries / "one").rename(queries / "eleven")
    result = succeed("evaluate", places["index"], "--queries", queries, "--json")
    figures = json.loads(result.out)
    assert (figures["queries"], figures["skipped"]) == (16, 4)


def test_evaluate_prints_a_table_in_percent(workspace: Places) -> None:
    result = succeed("evaluate", workspace["index"], "--queries", workspace["queries"])
    found = re.search(r"^\s*map\s+(\S+)\s+\S+ to \S+\s*$", result.out, flags=re.MULTILINE)
    assert found is not None
    assert float(found[1]) == pytest.approx(100 * evaluate(workspace, "{index}")["cosine"]["map"], abs=0.006)
    assert result.err == "20 queries; 0 without a match in the gallery were skipped\n"


def test_a_reader_that_leaves_early_is_no_error(workspace: Places) -> None:
    code = f"import os; read, write = os.pipe(); os.close(read); os.dup2(write, 1); {MAIN}"
    result = run_process("search", workspace["index"], workspace["query"], code=code)
    assert (result.code, result.err) == (0, "")


def test_nothing_but_data_is_printed_on_standard_output(places: Places) -> None:
    assert succeed(*fill(COMPRESS_RUN, places)).out == f"{places['out']}\n"
    assert run_cli("search", places["index"], places["none"]).out == ""
