"""What the benchmarks share: the machine in words, the spread of a figure over rounds, and the JSON file."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median

import psutil

from indistill.export.bench_machine import read_cpu_name

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "onnxruntime", "faiss-cpu", "pillow")
Spread = dict[str, float]


def describe_machine() -> dict[str, object]:
    """Returns processor, cores, memory, versions, the thread setting of the shell, and the load at this moment."""
    return {
        "cpu": read_cpu_name(),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "loadavg_1min_before": psutil.getloadavg()[0],
    }


def measure_spread(values: Sequence[float]) -> Spread:
    """Returns min, median and max."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def format_spread(spread: Spread) -> str:
    """Returns "min / median / max" with two decimals."""
    return " / ".join(f"{spread[name]:.2f}" for name in ("min", "median", "max"))


def report_machine(machine: Mapping[str, object]) -> None:
    """Prints the line that every table needs beside it."""
    before, after = machine["loadavg_1min_before"], psutil.getloadavg()[0]
    print(f"{machine['cpu']}, {machine['logical_cores']} logical cores, load average {before:.1f} -> {after:.1f}")


def write_figures(path: Path | None, machine: Mapping[str, object], figures: Mapping[str, object]) -> None:
    """Writes the figures and the machine that they come from as JSON, where a file is asked for."""
    if path is None:
        return
    described = {**machine, "loadavg_1min_after": psutil.getloadavg()[0]}
    path.write_text(json.dumps({**figures, "machine": described}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
