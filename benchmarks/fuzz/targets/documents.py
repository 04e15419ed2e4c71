"""What runs, exported files and commands wrote as JSON and YAML, changed: read by the commands that read it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.fuzz.command import check_command
from benchmarks.fuzz.texts import change_bytes, change_text, change_tree, draw_text, format_json
from benchmarks.fuzz.workspace import find_workspace as prepare
from indistill.cli.bench_output import tabulate_bench, write_bench_page
from indistill.cli.closeness import find_shortfall, read_closeness
from indistill.export.artefact import Artefact, read_artefact
from indistill.export.bench_report import read_report
from indistill.preprocess import Preprocessing
from indistill.retrieval.evaluation.ground_truth import locate_judgements, read_ground_truth
from indistill.run_folder import is_run, read_environment, read_metrics, read_run
from indistill.runs.resume import check_output
from indistill.training.loggers import read_places

ARTEFACT = Artefact("cnn-s", 64, Preprocessing(32), "image", "fp32", {}, "cnn-a", "ab", "cd", {"cosine": 1.0}, "0.1.0")
TRUTH = {"a.png": {"easy": ["1.png", "2.png"], "hard": [], "junk": ["3.png"]}, "b.png": {"easy": []}}
BENCH = Path(__file__).parents[1] / "seeds" / "bench.json"

__all__ = ["attempt", "prepare"]


def attempt(random: Random, folder: Path) -> None:
    """Reads one changed document."""
    random.choice(READERS)(random, folder)


def write(random: Random, path: Path, tree: Any) -> None:
    """Writes a tree as JSON or, by the name of the file, YAML; changed as a tree, as a text, as bytes."""
    changed = change_tree(random, tree) if random.random() < 0.7 else tree
    text = format_json(changed)
    if path.suffix == ".yaml" and text.startswith("{") and random.random() < 0.7:
        text = yaml.safe_dump(changed)
    if changed is tree or random.random() < 0.1:
        text = change_text(random, text)
    path.write_bytes(change_bytes(random, text) if random.random() < 0.3 else text.encode("utf-8", "replace"))


def _read_run(random: Random, folder: Path) -> None:
    run = folder / "run"
    shutil.copytree(prepare() / "run", run, copy_function=_link)
    name = random.choice(
        ("config.yaml", "config.yaml", "environment.json", "metrics.jsonl", "closeness.json", "loggers.json")
    )
    source = prepare() / "run" / name
    (run / name).unlink(missing_ok=True)
    if name == "metrics.jsonl":
        text = source.read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines()]
        (run / name).write_text("\n".join(format_json(change_tree(random, record)) for record in records), "utf-8")
    elif name == "loggers.json":
        write(random, run / name, {"wandb": "abc", "mlflow": "def"})
    else:
        write(random, run / name, yaml.safe_load(source.read_text(encoding="utf-8")))
    readers: tuple[Callable[[], object], ...] = (
        lambda: check_command(
            ["compare", str(run), str(prepare() / "run"), "--no-latency", "--html", str(folder / "a.html")]
        ),
        lambda: check_command(["compare", str(run), "--no-latency", "--json"]),
        lambda: (is_run(run), read_metrics(run / "metrics.jsonl"), read_environment(read_run(run)), read_places(run)),
        lambda: [figures and find_shortfall(figures) for figures in (read_closeness(read_run(run)),)],
        lambda: check_output(run, overwrite=False, resume=True),
    )
    random.choice(readers)()


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _read_artefact(random: Random, folder: Path) -> None:
    metadata = ARTEFACT.to_metadata()
    for name in random.sample(sorted(metadata), random.choice((1, 1, 2))):
        text = metadata[name]
        changed = format_json(change_tree(random, json.loads(text))) if text[:1] in "{[" else draw_text(random)
        metadata[name] = change_text(random, text) if random.random() < 0.5 else changed
    read_artefact(metadata, "student.onnx")


def _read_report(random: Random, folder: Path) -> None:
    write(random, folder / "bench.json", json.loads(BENCH.read_text(encoding="utf-8")))
    report = read_report(folder / "bench.json")
    write_bench_page(folder / "bench.html", report)
    tabulate_bench(report)


def _read_truth(random: Random, folder: Path) -> None:
    write(random, folder / "truth.json", TRUTH)
    truth = read_ground_truth(folder / "truth.json")
    locate_judgements(truth, ["a.png", "b.png"], ["1.png", "2.png", "3.png"])


READERS = (_read_run, _read_run, _read_run, _read_artefact, _read_report, _read_truth)
