"""environment.json of a run: versions, machine, commit, data fingerprint and seed."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from indistill.data.pixels import Pixels, StreamedPixels

PACKAGES = ("indistill", "torch", "torchvision", "timm", "numpy", "onnx", "onnxruntime", "faiss-cpu", "pillow")


def describe_environment(pixels: Pixels | StreamedPixels, seed: int) -> dict[str, Any]:
    """Returns versions, machine, commit, data fingerprint and seed."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": psutil.cpu_count(logical=True),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "commit": _find_commit(),
        "data_fingerprint": pixels.fingerprint,
        "images": len(pixels),
        "seed": seed,
    }


def _find_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
