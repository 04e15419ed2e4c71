"""The ablation on CIFAR-10: what each part of the method brings to the paper's student.

    python -m benchmarks.ablation --data FOLDER --teacher-weights FILE --out FOLDER [--groups NAME ...] [--seeds 1 2 3]
        [--epochs 14]

Every row changes the recipe `paper` by the options that it shows, and no more; those of the search change `cifar10`.
FOLDER of --data holds `train` and `test`; for choosing a recipe that is a split of the training images by
`benchmarks.hold_out`. The schedule is a fifth of the 70 epochs unless --epochs says otherwise. What is in --out
already is not done again. Prints `map` by the cosine in percent as Markdown, mean and standard deviation over the
seeds, and the difference to `paper` seed by seed.
"""

import argparse
import re
import statistics
from pathlib import Path

from benchmarks.cifar10 import PAPER, make_run, read_figures

RECIPE, OURS = "paper", "--recipe cifar10"
COSINE = "--set optimiser.schedule=cosine --set optimiser.restart=phase --set optimiser.final_lr"
LOSSES = ("pkt", "pkt-eccv", "kd", "dkd", "hint", "rkd", "sp", "contrastive", "regression", "pkth")
GROUPS: dict[str, dict[str, str | None]] = {
    "reference": {
        RECIPE: "",
        "the recipe cifar10": OURS,
        "labels alone": None,
        "as published": "--faithful",
    },
    "each loss alone": {loss: f"--no-warm-up --loss {loss}" for loss in LOSSES if loss != "pkth"},
    "each loss after the warm-up": {loss: f"--loss {loss}" for loss in LOSSES if loss != "pkt"},
    "alignment": {"a learnt regressor in place of pruning": "--set targets.alignment=regressor"},
    "criterion": {name: f"--criterion {name}" for name in ("l2", "fpgm", "bn-scale", "taylor", "activation", "random")},
    "search": {
        "the recipe": OURS,
        "PKT, 0.002": f"{OURS} --loss pkt --lr 0.002",
        "PKT": f"{OURS} --loss pkt",
        "PKT, 0.016": f"{OURS} --loss pkt --lr 0.016",
        "PKT, kept statistics": f"{OURS} --loss pkt --set targets.statistics=kept",
        "PKT, batches of 64": f"{OURS} --loss pkt --batch-size 64",
        "PKT, crops of 1 pixel": f"{OURS} --loss pkt --set data.crop_padding=1",
        "PKT before the ReLU": f"{OURS} --loss pkt --student paper:cnn-s?embedding=fc1",
        "PKT, cosine from 0.004": f"{OURS} --loss pkt {COSINE}=0.004 --lr 0.004",
        "PKT, one Adam": f"{OURS} --loss pkt {COSINE}=0.004 --lr 0.004 --set optimiser.restart=never",
        "PKT, cosine from 0.01": f"{OURS} --loss pkt {COSINE}=0.01 --lr 0.01",
        "PKT and labels": f"{OURS} --loss pkt --set loss.supervised=supcon",
        "regression": f"{OURS} --loss regression",
        "sp": f"{OURS} --loss sp",
        "temperature 0.05": f"{OURS} --set loss.temperature=0.05",
        "temperature 0.2": f"{OURS} --set loss.temperature=0.2",
        "batches of 256": f"{OURS} --batch-size 256",
        "crops of 2 pixels": f"{OURS} --set data.crop_padding=2",
        "no warm-up": f"{OURS} --no-warm-up",
        "and labels": f"{OURS} --set loss.supervised=supcon",
    },
    "curriculum": {name: f"--set curriculum.kind={name}" for name in ("joint", "reversed", "equal", "adaptive")},
}


def name_run(options: str | None) -> str:
    """Returns a folder name for a set of options."""
    return "supervised" if options is None else re.sub(r"[^\w.]+", "-", options).strip("-") or "recipe"


def format_percent(values: list[float], *, signed: bool = False) -> str:
    """Returns the mean, with the standard deviation where there are several values."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{'+' if signed else ''}.2f}{spread}"


def main() -> None:
    """Makes what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=14, help="of each training in all (14)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def measure(changes: str | None, seed: int) -> float:
        run = options.out / f"{name_run(changes)}-{options.epochs}-{seed}"
        given = None if changes is None else f"{PAPER} {changes}"
        found = make_run(given, run, seed, options.epochs, options.data, options.teacher_weights)
        return read_figures(found)["cosine map"]

    recipe = [measure("", seed) for seed in options.seeds]
    print("| | options | runs | map | difference to the recipe |\n|---|---|---|---|---|")
    for group in options.groups:
        for name, changes in GROUPS[group].items():
            found = [measure(changes, seed) for seed in options.seeds]
            difference = format_percent([a - b for a, b in zip(found, recipe, strict=True)], signed=True)
            shown = "`indistill train`" if changes is None else f"`{changes}`" if changes else ""
            print(f"| {group}: {name} | {shown} | {len(found)} | {format_percent(found)} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
