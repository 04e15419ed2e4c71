"""Throughput of two processes on the CPU against one process with two threads, at the same batch.

    python -m benchmarks.processes --json processes.json

Teacher paper:cnn-a, student paper:cnn-s and the digits of scikit-learn: the smallest steps there are, in which what the
processes tell one another weighs most; `--teacher` and `--student` take larger ones. Both sides are `indistill compress
--no-warm-up` as a user types it, in turn, in several rounds. The images/s are those of metrics.jsonl, without the first
epoch. Ideal is the throughput of one process that has all threads.

The loss curves are compared as well, at a learning rate at which Adam does not amplify the last digits.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.machine import describe_machine, format_spread, measure_spread, report_machine, write_figures

SIDES = {"threads": 1, "processes": 2}  # by the number of processes
COMMON = ("--data", "digits/train", "--recipe", "digits", "--no-warm-up", "--no-report", "--lr", "1e-4", "--overwrite")


def train(side: str, out: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Returns the records of the epochs of a run; both sides have two threads in all."""
    count = SIDES[side]
    command = [sys.executable, "-m", "indistill.cli.main", "compress", *COMMON, "--out", str(out)]
    command += ["--teacher", arguments.teacher, "--student", arguments.student, "--devices", str(count)]
    command += ["--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(SIDES.values()) // count)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def compare_losses(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Returns the largest difference of two loss curves, as a share of the loss."""
    return max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(one, other, strict=True))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="paper:cnn-a", help="model spec (paper:cnn-a)")
    parser.add_argument("--student", default="paper:cnn-s", help="model spec (paper:cnn-s)")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a batch, of all processes (128)")
    parser.add_argument("--epochs", type=int, default=10, help="of each run; the first is not timed (10)")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are run (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser.parse_args()


def main() -> None:
    arguments, machine = parse_arguments(), describe_machine()
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    differences = []
    with TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            order = list(SIDES)[:: 1 if number % 2 else -1]
            records = {side: train(side, Path(folder) / side, arguments) for side in order}
            for side in SIDES:
                rates[side].append(median(record["images_per_s"] for record in records[side][1:]))
            differences.append(compare_losses(records["threads"], records["processes"]))
    spreads = {side: measure_spread(rates[side]) for side in SIDES}
    ratio = measure_spread([p / t for p, t in zip(rates["processes"], rates["threads"], strict=True)])
    print(f"| {arguments.teacher} to {arguments.student}, batch {arguments.batch_size} | min / median / max |")
    print("|---|---|")
    print(f"| one process, two threads, images/s | {format_spread(spreads['threads'])} |")
    print(f"| two processes, a thread each, images/s | {format_spread(spreads['processes'])} |")
    print(f"| two processes / one | {format_spread(ratio)} |")
    print(f"| largest difference of the losses | {max(differences):.1e} |")
    print(f"{arguments.rounds} rounds of {arguments.epochs} epochs")
    report_machine(machine)
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    figures = {
        "benchmark": "processes",
        "settings": settings,
        "images_per_s": spreads,
        "ratio": ratio,
        "largest_loss_difference": max(differences),
        "rounds": rates,
    }
    write_figures(arguments.json, machine, figures)


if __name__ == "__main__":
    main()
