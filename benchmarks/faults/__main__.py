"""Disturbs each command that writes by each fault, and prints what was lost.

    python -m benchmarks.faults --tries 6

Tiny images, tiny networks, one thread. A try prepares a place, starts the command in a process of its own, disturbs it,
looks at what it left, and gives the command again. Most processes are forked with everything imported, so that a try
takes a second; half of those that are stopped by a signal, and all with workers, are fresh ones. Needs Linux and root:
disks are small file systems of their own, and where permission is denied the command has no
rights but those that modes give.

Of each try there must be: nothing lost (the place holds the old result or the new one, and the new one if the command
said that it was done), nothing half written under a final name, one clear line and a documented exit code (for signals
within two seconds), and the command given again completes.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.faults.commands import COMMANDS, Command
from benchmarks.faults.faults import FAULTS, RANDOM
from benchmarks.faults.trial import Known, Stage
from benchmarks.machine import describe_machine, report_machine

KINDS = ("lost", "half-written", "unclear", "repeat failed")
FEW = 2
STOP_S = 2.0


def run_cell(
    stage: Stage, command: Command, known: Known, fault: str, tries: int, seed: int, stops_s: list[float]
) -> Counter[str]:
    """Returns the tries of a command with a fault, and how many of them had each kind of problem."""
    counts = Counter[str]()
    for number in range(tries):
        chosen = random.Random(f"{command.name} {fault} {seed} {number}")
        with stage.open_place(command, chosen, known) as trial:
            FAULTS[fault](trial)
        counts["tries"] += 1
        stops_s += trial.stops_s
        for kind, texts in trial.problems.items():
            counts[kind] += 1
            for text in texts:
                print(f"{command.name}, {fault}, try {number}: {kind}: {text}", file=sys.stderr, flush=True)
    return counts


def print_table(cells: dict[tuple[str, str], Counter[str]]) -> None:
    """Prints a row for each fault with the sums over the commands, then the tries of each command."""
    faults = list(dict.fromkeys(fault for _, fault in cells))
    print(f"| fault | tries | {' | '.join(KINDS)} |")
    print("|---|" + "---:|" * (1 + len(KINDS)))
    for fault in faults:
        total = sum((counts for (_, other), counts in cells.items() if other == fault), Counter[str]())
        print(f"| {fault} | {total['tries']} | {' | '.join(str(total[kind]) for kind in KINDS)} |")
    print(f"\n| tries | {' | '.join(faults)} |")
    print("|---|" + "---:|" * len(faults))
    for name in dict.fromkeys(command for command, _ in cells):
        print(f"| {name} | {' | '.join(describe_cell(cells.get((name, fault))) for fault in faults)} |")


def describe_cell(counts: Counter[str] | None) -> str:
    """Returns the tries, and how many had a problem."""
    if counts is None:
        return "-"
    bad = max(counts[kind] for kind in KINDS)
    return f"{counts['tries']}" + (f" ({bad} bad)" if bad else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=6, help="of each fault that has a random moment (6), else 2")
    parser.add_argument("--command", action="append", help="one of the commands; repeatable (all)")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="one of the faults; repeatable (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: forked lives compute as fresh ones do
    for number in (signal.SIGINT, signal.SIGTERM):  # by which the tries end and the table is printed
        signal.signal(number, signal.default_int_handler)
    begun, machine = time.monotonic(), describe_machine()
    root = Path(tempfile.mkdtemp(prefix="indistill-faults-"))
    cells: dict[tuple[str, str], Counter[str]] = {}
    stops_s: list[float] = []
    try:
        stage = Stage(root)
        for command in COMMANDS:
            if options.command and command.name not in options.command:
                continue
            known = stage.learn(command)
            for fault in options.fault or FAULTS:
                if fault != "worker killed" or command.workers is not None:
                    tries = options.tries if fault in RANDOM else min(FEW, options.tries)
                    cells[command.name, fault] = run_cell(stage, command, known, fault, tries, options.seed, stops_s)
                    print(f"{command.name}, {fault}: {dict(cells[command.name, fault])}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: the table is of what was tried so far", file=sys.stderr)
    finally:
        shutil.rmtree(root)
    print_table(cells)
    if stops_s:
        late = sum(stop > STOP_S for stop in stops_s)
        slowest = f"the slowest after {max(stops_s):.1f} s, {late} after more than {STOP_S:g}"
        print(f"\n{len(stops_s)} stops by a signal, {slowest}.")
    print()
    report_machine(machine)
    print(f"{(time.monotonic() - begun) / 60:.0f} minutes")
    sys.exit(any(counts[kind] for counts in cells.values() for kind in KINDS))


if __name__ == "__main__":
    main()
