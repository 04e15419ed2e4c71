"""Mutants of the core: does a test fail when one operator, number, name or argument of the method is changed?

python -m benchmarks.mutants --out benchmarks/mutants.json --page benchmarks/mutants.md

mutmut (extra `mutation`) changes the functions of the modules in `PARTS`, and `mutant_loop.py` runs the tests beside
them, in place of mutmut's own runner, which takes pytest anew for each mutant; a mutant that no test notices survives.
This happens in a copy in which `cli/`, `export/` and `retrieval/` lie inside the package, and `f = decorate(f)` stands
below a decorated function, which mutmut would leave as it is. Constants of modules and defaults of dataclasses
are not changed. `mutants_reasons.yaml` says of each survivor why no test should notice it; one without a reason is
named, and the command ends with 1. A second run tries the survivors again, and what the first one had no time for, as
long as the modules are the same: `build/mutants/` holds what was found; delete it to begin anew.
"""

import argparse
import ast
import contextlib
import difflib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import yaml

from benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parents[1]
REASONS = ROOT / "benchmarks" / "mutants_reasons.yaml"
STATE = ROOT / "build" / "mutants"
CAUGHT = ("killed", "timeout")
LINKED = ("cli", "export", "retrieval")
COPIED = ("indistill", *LINKED, "tests", "docs", "pyproject.toml")


class Part(NamedTuple):
    modules: tuple[str, ...]  # patterns below indistill/
    tests: tuple[str, ...]  # below tests/, without what starts servers, processes or whole runs


PARTS = {
    "losses": Part(
        ("losses/*.py",),
        (
            "indistill/test_losses.py",
            "indistill/test_losses_behaviour.py",
            "indistill/test_losses_golden.py",
            "indistill/test_terms.py",
        ),
    ),
    "pruning": Part(("pruning/channels.py",), ("indistill/test_pruning.py",)),
    "curriculum": Part(("curriculum/*.py",), ("indistill/test_curriculum.py", "indistill/test_schedule.py")),
    "metrics": Part(
        tuple(
            f"retrieval/evaluation/{name}.py"
            for name in ("metrics", "ranks", "evaluate", "deployed", "ground_truth", "judged", "intervals")
        ),
        tuple(
            f"retrieval/test_{name}.py"
            for name in ("metrics", "evaluate", "deployed", "map_among", "ground_truth", "judged", "intervals")
        ),
    ),
    "catalogue": Part(("retrieval/store/catalogue.py",), ("retrieval/test_catalogue.py",)),
}


def undecorate(source: str) -> str:
    """Returns the source with `f = decorate(f)` below each decorated function of the module."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            called = node.name
            for decorator in reversed(node.decorator_list):
                called = f"{ast.unparse(decorator)}({called})"
            lines.insert(node.end_lineno or 0, f"{node.name} = {called}")
            del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def copy_sources(work: Path) -> None:
    """Writes what the tests need into a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *COPIED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        source, below = ROOT / name, "indistill" if name.startswith(tuple(f"{folder}/" for folder in LINKED)) else "."
        if source.is_file():
            (work / below / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, work / below / name)
    # mutmut wants to be told of its project
    (work / "setup.cfg").write_text("[mutmut]\nsource_paths = indistill\n", encoding="utf-8")


def mutate_modules(work: Path, part: Part) -> dict[str, dict]:
    """Puts the mutants into the modules of the copy, and returns module, function and change of each."""
    from mutmut.mutation.file_mutation import mutate_file_contents

    mutants = {}
    for path in sorted(path for pattern in part.modules for path in (work / "indistill").glob(pattern)):
        module = str(path.relative_to(work))
        source = path.read_text(encoding="utf-8")
        mutated = mutate_file_contents(module, undecorate(source))
        path.write_text(mutated.code, encoding="utf-8")
        lines = mutated.code.splitlines()
        for name in mutated.mutant_names:
            function = name.rpartition("__mutmut_")[0]
            spans = (mutated.line_span_by_function_name[key] for key in (f"{function}__mutmut_orig", name))
            change = describe_change(*(lines[span.start - 1 : span.end] for span in spans))
            mutants[f"{module.removesuffix('.py').replace('/', '.')}.{name}"] = {
                "module": module.replace("indistill/retrieval/", "retrieval/"),
                "function": function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."),
                "change": change,
                "source": hashlib.sha256(source.encode()).hexdigest()[:12],
            }
    return mutants


def run_part(name: str, processes: int, minutes: float) -> dict:
    """Returns the number of mutants of each module by what became of them, and the survivors.

    What `minutes` leave undone, and what survived, is tried by the next call.
    """
    part = PARTS[name]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_sources(work)
        with contextlib.chdir(work):
            mutants = mutate_modules(work, part)
        sources = {key: mutant.pop("source") for key, mutant in mutants.items()}
        results = STATE / f"{name}.jsonl"
        statuses = read_statuses(results, sources)
        left = [key for key in mutants if statuses.get(key) not in CAUGHT]
        if minutes and left:
            left = random.Random(0).sample(left, len(left))  # so that what is done in time is a fair sample
            (work / "mutants.json").write_text(json.dumps({key: sources[key] for key in left}), encoding="utf-8")
            run_tests(work, part, results, processes, minutes)
            statuses = read_statuses(results, sources)
    modules = defaultdict(Counter)
    for key, status in statuses.items():
        modules[mutants[key]["module"]][status] += 1
    survivors = [{**mutants[key], "status": status} for key, status in statuses.items() if status not in CAUGHT]
    return {
        "made": len(mutants),
        "modules": {module: dict(sorted(counts.items())) for module, counts in sorted(modules.items())},
        "survivors": sorted(survivors, key=lambda s: (s["module"], s["function"], s["change"])),
    }


def run_tests(work: Path, part: Part, results: Path, processes: int, minutes: float) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "MUTANTS": str(work / "mutants.json"), "RESULTS": str(results)}
    environment.update(MUTANT_PROCESSES=str(processes), MUTANT_MINUTES=str(minutes))
    environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONPATH=str(ROOT / "benchmarks"))
    plugins = [word for name in ("mutant_loop", "no:randomly", "no:cacheprovider", "no:xdist") for word in ("-p", name)]
    tests = [f"tests/{name}" for name in part.tests]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", *plugins, *tests]
    ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.stdout[-2000:] + ended.stderr[-2000:])


def read_statuses(results: Path, sources: dict[str, str]) -> dict[str, str]:
    """Returns what became of each mutant of the modules as they are, as last found."""
    lines = map(json.loads, results.read_text(encoding="utf-8").splitlines() if results.exists() else [])
    return {line["name"]: line["status"] for line in lines if sources.get(line["name"]) == line["source"]}


def describe_change(before: list[str], after: list[str]) -> str:
    """Returns the changed lines as `same [old → new] same`, cut to some characters of what is the same."""
    changed = [line for line in difflib.ndiff(before, after) if "__mutmut_" not in line]
    old, new = (" ".join(line[2:].strip() for line in changed if line.startswith(sign)) for sign in "-+")
    start = count_same(old, new)
    end = count_same(old[start:][::-1], new[start:][::-1])
    stop_old, stop_new = len(old) - end, len(new) - end
    return f"{old[:start][-48:]}[{old[start:stop_old]} → {new[start:stop_new]}]{old[stop_old:][:32]}"


def count_same(first: str, second: str) -> int:
    """Returns how many letters two texts have in common at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def find_reason(survivor: dict, reasons: list[dict]) -> dict | None:
    text = f"{survivor['module']} {survivor['function']}: {survivor['change']}"
    return next((reason for reason in reasons if any(re.search(p, text) for p in reason["changes"])), None)


def write_page(found: dict, reasons: list[dict]) -> tuple[str, list[dict]]:
    """Returns the page, and the survivors without a reason."""
    rows, totals = [], Counter()
    samples = []
    for part, result in found["parts"].items():
        done = sum(sum(counts.values()) for counts in result["modules"].values())
        if done < result["made"]:
            samples.append(f"{part}: {done} of {result['made']}, drawn with the seed 0, for want of time.")
        for module, counts in result["modules"].items():
            count, killed, late = sum(counts.values()), counts.get("killed", 0), counts.get("timeout", 0)
            totals.update(mutants=count, killed=killed, timeouts=late)
            share = f"{100 * (killed + late) / count:.1f} %"
            rows.append(f"| {part} | `{module}` | {count} | {killed} | {late} | {count - killed - late} | {share} |")
    count, killed, late = (totals[name] for name in ("mutants", "killed", "timeouts"))
    survivors = [survivor for result in found["parts"].values() for survivor in result["survivors"]]
    settled = [(survivor, find_reason(survivor, reasons)) for survivor in survivors]
    kinds = Counter(reason["kind"] if reason else "without a reason" for _, reason in settled)
    lines = [
        "# Mutants of the core",
        "",
        "`python -m benchmarks.mutants --out benchmarks/mutants.json --page benchmarks/mutants.md` "
        f"(mutmut {found['mutmut']}, {found['machine']['cpu']}, {found['date']}). What is changed and what not is said "
        "at the top of that file. A mutant with which its tests take four times as long and five seconds more "
        "is a timeout, and counts as killed.",
        "",
        "| part | module | mutants | killed | timeouts | survived | share killed |",
        "|---|---|---|---|---|---|---|",
        *rows,
        f"| **all** | | **{count}** | **{killed}** | **{late}** | **{count - killed - late}** "
        f"| **{100 * (killed + late) / count:.1f} %** |",
        "",
        *samples,
        f"Survivors: {', '.join(f'{number} {kind}' for kind, number in kinds.most_common())}. "
        "`[old → new]` is the change.",
    ]
    for reason in reasons:
        mine = [survivor for survivor, found_reason in settled if found_reason is reason]
        if mine:
            lines += ["", f"**{reason['kind'].capitalize()}** ({len(mine)}): {reason['why']}", ""]
            lines += [f"- `{s['module']}` {s['function']}: `` {s['change']} ``" for s in mine]
    return "\n".join(lines) + "\n", [survivor for survivor, reason in settled if reason is None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="run this part alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=600, help="for each part; 0 writes the page alone")
    parser.add_argument("--out", type=Path, help="JSON of the counts and survivors")
    parser.add_argument("--page", type=Path, help="table and survivors as Markdown")
    options = parser.parse_args()
    chosen = options.part or PARTS
    found = {
        "mutmut": metadata.version("mutmut"),
        "machine": describe_machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    found["parts"] = {
        name: run_part(name, options.processes, options.minutes if name in chosen else 0) for name in PARTS
    }
    page, unexplained = write_page(found, yaml.safe_load(REASONS.read_text(encoding="utf-8")))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.page is not None:
        options.page.write_text(page, encoding="utf-8")
    print(page)
    for survivor in unexplained:
        print(f"no reason: {survivor['module']} {survivor['function']}: {survivor['change']}")
    sys.exit(1 if unexplained else 0)


if __name__ == "__main__":
    main()
