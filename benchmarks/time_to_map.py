"""Time to a student as good as the published loop's: the recipe cifar10, shortened, against that loop's 70 epochs.

    python -m benchmarks.time_to_map --data FOLDER --teacher-weights FILE --out FOLDER [--epochs 14 20] [--json FILE]

The published schedule's time is that of the plain loop of `benchmarks.training_step`, extrapolated from steps timed
here, before and after ours, in a process of its own. Ours is the time of the epochs in metrics.jsonl of whole
`indistill compress` runs, one for each of --epochs, with as many threads. Reading and starting up are in neither. The
first run whose `map` (cosine, `test` against `train`) is no lower than --target counts: 49.6 is what a plain loop of
the published code reached on these files, and what `--faithful` reaches within its spread (cifar10.md).
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.cifar10 import VARIANTS, make_run, read_figures
from benchmarks.machine import describe_machine, report_machine, write_figures
from benchmarks.training_step import STEPS_PER_EPOCH, STUDENT_WIDTHS, time_step
from indistill.runs.compress import plan_curriculum
from indistill.runs.config import load_recipe

IMAGES, THREADS, WARM_UP = 50_000, 2, 10


def time_plain_schedule(steps: int) -> float:
    """Returns the minutes of the published schedule in the plain loop, extrapolated."""
    schedule = plan_curriculum(load_recipe("paper"), len(STUDENT_WIDTHS), None)
    measured: dict[tuple[str, int], float] = {}
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        for phase in schedule:
            if (phase.objective, phase.stage) not in measured:  # the final phase's step is the embedding's
                future = process.submit(time_step, "plain", phase, IMAGES, THREADS, WARM_UP, steps)
                measured[phase.objective, phase.stage] = future.result()
    return sum(STEPS_PER_EPOCH * phase.epochs * measured[phase.objective, phase.stage] for phase in schedule) / 60e3


def read_minutes(run: Path) -> float:
    """Returns the time of a run's epochs in minutes."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(float(json.loads(line)["seconds"]) for line in lines) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher-weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--epochs", type=int, nargs="+", default=[14, 20, 28], help="of the runs, in this order")
    parser.add_argument("--target", type=float, default=49.6, help="map in percent (49.6)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each phase of the plain loop (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    options, machine = parser.parse_args(), describe_machine()
    options.out.mkdir(parents=True, exist_ok=True)
    plain, rows = [time_plain_schedule(options.steps)], []
    for epochs in options.epochs:
        run = options.out / f"indistill-{epochs}-{options.seed}"
        exact = make_run(VARIANTS["indistill"], run, options.seed, epochs, options.data, options.teacher_weights)
        rows.append({"epochs": epochs, "minutes": read_minutes(run), "map": read_figures(exact)["cosine map"]})
        print("{epochs} epochs: {minutes:.2f} minutes, map {map:.2f}".format(**rows[-1]))
        if rows[-1]["map"] >= options.target:
            break
    plain.append(time_plain_schedule(options.steps))
    reached = rows[-1]["map"] >= options.target
    ratios = [minutes / rows[-1]["minutes"] for minutes in plain] if reached else []
    print(f"plain loop, 70 epochs: {plain[0]:.1f} and {plain[1]:.1f} minutes, extrapolated before and after")
    if reached:
        print(f"map {options.target} in 1/{min(ratios):.1f} to 1/{max(ratios):.1f} of the time")
    else:
        print(f"map {options.target} was not reached")
    report_machine(machine)
    figures = {
        "benchmark": "time_to_map",
        "target": options.target,
        "plain_minutes": plain,
        "runs": rows,
        "ratios": ratios,
    }
    write_figures(options.json, machine, figures)


if __name__ == "__main__":
    main()
