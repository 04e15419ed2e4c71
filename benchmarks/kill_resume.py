"""Kills a run again and again with SIGKILL and resumes it, and compares it with one that was never killed.

    python -m benchmarks.kill_resume --kills 20

Distils a teacher with random weights into a small student with dropout, over an auxiliary, on scikit-learn's digits;
each life of the run is a process that is killed at a random moment: some while they begin, most while they train. At
the end all weights, bit by bit, and the losses of all epochs, each of which must be there once, are compared with those
of a run in one piece. Prints the kills and where they fell. Needs a system that forks.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

STUDENT = """
from torch import nn


def build(num_classes: int = 10) -> nn.Module:
    def convolve(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]

    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    last = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, num_classes)]
    return nn.Sequential(*convolve(3, 4), *convolve(4, 8), *pool, *last)
"""
CHECKPOINT_EVERY_S = 0.05
IN_THE_BEGINNING = 0.15  # share of the kills that fall before training begins, or a little after
WITHOUT_REAPING = os.WEXITED | os.WNOHANG | os.WNOWAIT


@dataclass(frozen=True)
class KillPlan:
    """How often a run is killed, and what it is.

    Attributes:
        kills: the most kills; a run may end before, though its kills are spread over its epochs.
        epochs: of the whole run.
        seed: of the moments.
        auxiliary: whether there is one.
    """

    kills: int
    epochs: int
    seed: int
    auxiliary: bool


@dataclass(frozen=True)
class Outcome:
    """What came of a plan.

    Attributes:
        kills: how many there were.
        places: the last checkpoint at each kill.
        differences: what the two runs differ in.
    """

    kills: int
    places: list[str]
    differences: list[str]


def run_plan(plan: KillPlan, folder: Path) -> Outcome:
    """Runs a plan in a process of its own, which forks the lives: torch is imported once, and used in them alone."""
    code = "from benchmarks.kill_resume import serve; serve()"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(plan)), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def serve() -> None:
    """Is what the process of `run_plan` runs."""
    import sklearn.datasets  # noqa: F401 - once, not in each life

    plan, folder = KillPlan(**json.loads(sys.argv[1])), Path(sys.argv[2])
    (folder / "student.py").write_text(STUDENT, encoding="utf-8")
    whole, broken, lives = folder / "whole", folder / "broken", folder / "lives.log"
    begun = time.monotonic()
    child = fork_life(plan, folder, whole, lives)
    while not (whole / "config.yaml").exists() and os.waitid(os.P_PID, child, WITHOUT_REAPING) is None:
        time.sleep(0.005)
    begins_s = time.monotonic() - begun
    end(child)
    epoch_s = (time.monotonic() - begun - begins_s) / plan.epochs
    chosen, places = random.Random(plan.seed), []
    while True:
        child = fork_life(plan, folder, broken, lives)
        if len(places) < plan.kills:
            early, share = chosen.random() < IN_THE_BEGINNING, chosen.random()
            until = 0 if early else count_epochs(broken) + share * plan.epochs / (plan.kills + 1)
            while count_epochs(broken) < until and os.waitid(os.P_PID, child, WITHOUT_REAPING) is None:
                time.sleep(0.002)
            wait_s = chosen.random() * (begins_s if early else epoch_s)
        else:
            wait_s = None
        if not end(child, wait_s):
            break
        found = sorted(path.name.partition("-")[0] for path in broken.rglob("*.pt"))
        places.append(f"batch {int(found[-1])}" if found else "before the first checkpoint")
    print(json.dumps(asdict(Outcome(len(places), places, compare_runs(whole, broken)))))


def fork_life(plan: KillPlan, folder: Path, out: Path, log: Path) -> int:
    """Starts a process that begins the run, or resumes it, and returns its number."""
    child = os.fork()
    if child:
        return child
    from indistill.cli.main import main

    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    line = (
        f"indistill compress --teacher paper:cnn-a --student {folder}/student.py:build --data digits/test --recipe "
        f"digits --set targets.ahead=true --set optimiser.restart=never --set validation.share=0.2 "
        f"--pair stage1:3 --pair stage2:7 --epochs {plan.epochs} --checkpoint-every {CHECKPOINT_EVERY_S} --out {out}"
    )
    if plan.auxiliary:
        line += " --auxiliary paper:cnn-s"
    if (out / "config.yaml").exists():
        line += " --resume"
    sys.argv = line.split()
    try:
        main()
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    os._exit(0)


def end(child: int, wait_s: float | None = None) -> bool:
    """Waits for a process, and kills it if it has not ended in time; returns whether it was killed.

    Raises:
        RuntimeError: it failed.
    """
    until = None if wait_s is None else time.monotonic() + wait_s
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if status:
                raise RuntimeError(f"a life of the run ended with {status}: see lives.log")
            return False
        if until is not None and time.monotonic() >= until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.002)


def count_epochs(run: Path) -> int:
    """Returns the epochs that a run has written down, the auxiliary's too."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in run.rglob("metrics.jsonl"))


def compare_runs(whole: Path, broken: Path) -> list[str]:
    """Returns what differs in weights and losses."""
    differences = []
    for path in sorted(whole.rglob("*.safetensors")):
        if path.read_bytes() != (broken / path.relative_to(whole)).read_bytes():
            differences.append(str(path.relative_to(whole)))
    for path in sorted(whole.rglob("metrics.jsonl")):
        if read_losses(path) != read_losses(broken / path.relative_to(whole)):
            differences.append(str(path.relative_to(whole)))
    return differences


def read_losses(path: Path) -> list[tuple[object, ...]]:
    """Returns epoch, phase, loss and learning rate of each line."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [tuple(record[name] for name in ("epoch", "phase", "loss", "lr")) for record in records]


def main() -> None:
    """Prints the kills and the differences; ends with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="the most kills (20)")
    parser.add_argument("--epochs", type=int, default=60, help="of auxiliary and student together (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        plan = KillPlan(options.kills, options.epochs, options.seed, auxiliary=True)
        outcome = run_plan(plan, Path(folder))
    for number, place in enumerate(outcome.places, 1):
        print(f"kill {number}: {place}")
    print(f"{outcome.kills} kills; {', '.join(outcome.differences) or 'all weights and losses are equal, bit by bit'}")
    sys.exit(bool(outcome.differences))


if __name__ == "__main__":
    main()
