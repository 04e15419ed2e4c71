"""The CIFAR-10 table: teacher, supervised student, PKT alone, InDistill as published, the paper's and our recipe.

    python -m benchmarks.cifar10 --data FOLDER --teacher-weights FILE --out FOLDER [--only NAME ...] [--seeds 1 2 3]
        [--epochs N]

FOLDER of --data holds `train` and `test` with a sub-folder for each class. Every figure comes from the product's own
commands, which are printed: train or compress, export, index build over `train`, evaluate with `test`. What is in --out
already is not done again, so the runs may be made one by one, or side by side. Prints the table as Markdown.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

TABLE_METRICS = ("map", "map_paper11", "precision@100")
DEPLOYED = "indistill"  # the student that is exported, indexed and measured as deployed too
DEFAULT = ("supervised", "pkt", "faithful", "paper", "both-lr2", "indistill")
PAPER = "--recipe paper"
BATCH, RESTART = "--set targets.statistics=batch", "--set optimiser.restart=epoch"
BOTH = f"{PAPER} {BATCH} {RESTART}"
VARIANTS = {
    "supervised": None,
    "faithful": f"{PAPER} --faithful",
    "paper": PAPER,
    "indistill": "--recipe cifar10",
    "batch": f"{PAPER} {BATCH}",
    "phase": f"{PAPER} --set optimiser.restart=phase",
    "restart": f"{PAPER} {RESTART}",
    "both": BOTH,
    "both-lr2": f"{BOTH} --lr 0.002",
    "both-lr4": f"{BOTH} --lr 0.004",
    "both-lr8": f"{BOTH} --lr 0.008",
    "pkt": f"{BOTH} --lr 0.002 --no-warm-up",
    "pkt-lr1": f"{BOTH} --no-warm-up",
    "pkt-lr4": f"{BOTH} --lr 0.004 --no-warm-up",
    "contrastive": "--recipe cifar10 --no-warm-up",
}


def call(*arguments: str, into: Path | None = None) -> None:
    """Runs a command of the command line, its output into a file that appears when it is complete."""
    print("indistill", shlex.join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "indistill.cli.main", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    if into is not None:
        partial = into.with_suffix(".partial")
        partial.write_text(done.stdout, encoding="utf-8")
        partial.replace(into)


def make_run(options: str | None, run: Path, seed: int, epochs: int | None, data: Path, weights: Path) -> Path:
    """Trains one student, evaluates it exactly and returns the file of its figures.

    Args:
        options: of `compress`, the recipe's among them; None for supervised training.
        run: the run folder.
        seed: of the training.
        epochs: to which the schedule is scaled, or None for the recipe's own.
        data: the folder of `train` and `test`.
        weights: the teacher's.
    """
    common = ["--data", str(data / "train"), "--out", str(run), "--seed", str(seed)]
    if epochs is not None:
        common += ["--epochs", str(epochs)]
    if not (run / "model.safetensors").exists() and not (run / "student.safetensors").exists():
        if options is None:
            call("train", "--model", "paper:cnn-s", "--recipe", "cifar10", *common, "--overwrite")
        else:
            teacher = ["--teacher", "paper:cnn-a", "--teacher-weights", str(weights), "--student", "paper:cnn-s"]
            call("compress", *teacher, *common, *options.split(), "--overwrite")
    exact = run.with_name(f"{run.name}.json")
    if not exact.exists():
        sets = ["--gallery", str(data / "train"), "--queries", str(data / "test"), "--json"]
        call("evaluate", "--model", str(run), *sets, into=exact)
    return exact


def deploy_run(run: Path, data: Path) -> Path:
    """Exports a run, indexes the gallery, evaluates the index and returns the file of its figures."""
    deployed = run.with_name(f"{run.name}.deployed.json")
    file, index = run.with_name(f"{run.name}.onnx"), run.with_name(f"{run.name}.index")
    if not deployed.exists():
        call("export", str(run), "--onnx", "--out", str(file), "--data", str(data / "test"), "--overwrite")
        call("index", "build", str(data / "train"), "--model", str(file), "--out", str(index), "--overwrite")
        call("evaluate", str(index), "--queries", str(data / "test"), "--json", into=deployed)
    return deployed


def read_figures(path: Path) -> dict[str, float]:
    """Returns percent by 'cosine map' and the like."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        f"{metric} {name}": 100 * found[metric][name] for metric in ("cosine", "euclidean") for name in TABLE_METRICS
    }


def format_row(name: str, runs: list[dict[str, float]]) -> str:
    """Returns a row of the table: the mean, with the standard deviation where there are several runs."""
    cells = []
    for key in runs[0]:
        values = [run[key] for run in runs]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.2f}{spread}")
    return f"| {name} | {len(runs)} | " + " | ".join(cells) + " |"


def main() -> None:
    """Makes what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=DEFAULT)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, help="of each training in all, the schedule scaled (the recipe's)")
    parser.add_argument("--json", type=Path, help="where the figures of all runs go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = options.out / "teacher.json"
    if not teacher.exists():
        model = ["--model", "paper:cnn-a", "--weights", str(options.teacher_weights), "--recipe", "cifar10"]
        sets = ["--gallery", str(options.data / "train"), "--queries", str(options.data / "test")]
        call("evaluate", *model, *sets, "--json", into=teacher)
    figures = {"teacher": {"exact": [read_figures(teacher)], "deployed": []}}
    for name in options.only:
        figures[name] = {"exact": [], "deployed": []}
        for seed in options.seeds if name != "supervised" else options.seeds[:1]:
            length = "" if options.epochs is None else f"-{options.epochs}"
            run = options.out / f"{name}{length}-{seed}"
            exact = make_run(VARIANTS[name], run, seed, options.epochs, options.data, options.teacher_weights)
            figures[name]["exact"].append(read_figures(exact))
            if name == DEPLOYED:
                figures[name]["deployed"].append(read_figures(deploy_run(run, options.data)))
    columns = list(figures["teacher"]["exact"][0])
    print("| student trained by | runs | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name, runs in figures.items():
        print(format_row(name, runs["exact"]))
        if runs["deployed"]:
            print(format_row(f"{name}, deployed (ONNX + FAISS)", runs["deployed"]))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
