"""Latency and throughput side by side: one process for each engine, rounds in turn, ratios with their spread."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from indistill import __version__
from indistill.errors import IndistillError, InputError
from indistill.preprocess import PixelArray, Preprocessing

SCHEMA_VERSION = 1
LOADED = 0.5  # load average for each core above which figures are not to be trusted


@dataclass(frozen=True)
class Engine:
    """What is timed.

    Attributes:
        role: `teacher` or `student`.
        kind: `pytorch` runs the network eagerly as it is, `onnxruntime` runs an exported file.
        source: model spec, run or file.
        weights: of a model spec.
        arguments: of a model spec's factory.
    """

    role: Literal["teacher", "student"]
    kind: Literal["pytorch", "onnxruntime"]
    source: str
    weights: str | None = None
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Protocol:
    """How it is timed.

    Attributes:
        batches: batch sizes.
        threads: of each engine.
        rounds: each engine has a turn in each round.
        warmup: calls before a turn that do not count.
        iterations: calls in a turn, at least.
        min_seconds: length of a turn, at least.
    """

    batches: tuple[int, ...] = (1, 32)
    threads: int = 1
    rounds: int = 5
    warmup: int = 5
    iterations: int = 10
    min_seconds: float = 0.3


class _Worker:
    """An engine's process, started when it is loaded, so that the time to the first result is its own."""

    def __init__(self, engine: Engine, protocol: Protocol, preprocessing: Preprocessing, pixels: Path) -> None:
        self.engine = engine
        self._process: subprocess.Popen[str] | None = None
        self._threads = str(protocol.threads)
        self._order = {
            "kind": engine.kind,
            "source": engine.source,
            "weights": engine.weights,
            "arguments": dict(engine.arguments or {}),
            "threads": protocol.threads,
            "preprocessing": preprocessing.to_dict(),
            "pixels": str(pixels),
        }

    def load(self) -> dict[str, Any]:
        """Starts the process and returns what is known of the engine when it is loaded."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "indistill.export.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": self._threads, "MKL_NUM_THREADS": self._threads},
        )
        return self.ask(self._order)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to an order. Raises IndistillError, with the process's last words, if there is none."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            words = self._process.stderr.read().strip().splitlines()
            raise IndistillError(
                f"the {self.engine.kind} process of {self.engine.source} ended: {words[-1] if words else 'killed'}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = InputError if answer["exit_code"] == InputError.exit_code else IndistillError
            raise kind(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


def run_bench(
    engines: Sequence[Engine],
    pixels: PixelArray,
    preprocessing: Preprocessing,
    protocol: Protocol,
    on_progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Returns the figures of all engines, by the JSON layout of docs/bench.md.

    The first engine is the one that the others are compared with. What is timed is a call with resized images: neither
    decoding nor resizing, but division, network and norm.

    Args:
        engines: what is timed.
        pixels: real images (N, S, S, 3) uint8, repeated to fill a batch.
        preprocessing: mean and std for the PyTorch engines.
        protocol: how it is timed.
        on_progress: called with 1 after each turn; there are `count_turns` of them.

    Raises:
        IndistillError: an engine's process ends.
    """
    load_before = psutil.getloadavg()
    turns: dict[tuple[int, int], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="indistill-bench-"))
        np.save(Path(folder, "pixels.npy"), pixels)
        workers = []
        for engine in engines:
            worker = _Worker(engine, protocol, preprocessing, Path(folder, "pixels.npy"))
            stack.callback(worker.close)
            workers.append(worker)
        facts = [worker.load() for worker in workers]
        for batch in protocol.batches:
            request = {
                "batch": batch,
                "warmup": protocol.warmup,
                "iterations": protocol.iterations,
                "min_seconds": protocol.min_seconds,
            }
            for _ in range(protocol.rounds):
                for position, worker in enumerate(workers):
                    turns.setdefault((position, batch), []).append(worker.ask(request))
                    on_progress(1)
    results = [
        _summarise(engines[position], facts[position], batch, turns[position, batch], turns[0, batch])
        for batch in protocol.batches
        for position in range(len(engines))
    ]
    environment = _describe_environment(protocol, load_before)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": "indistill",
        "version": __version__,
        "environment": environment,
        "warnings": _find_warnings(environment, results),
        "input": {"shape": list(pixels.shape[1:]), "dtype": "uint8", "preprocess_included": False},
        "protocol": {
            "warmup": protocol.warmup,
            "iterations": protocol.iterations,
            "min_seconds": protocol.min_seconds,
            "rounds": protocol.rounds,
            "isolated_process": True,
        },
        "results": results,
    }


def count_turns(engines: Sequence[Engine], protocol: Protocol) -> int:
    """Returns how often `run_bench` reports progress."""
    return len(engines) * len(protocol.batches) * protocol.rounds


def _summarise(
    engine: Engine,
    facts: dict[str, Any],
    batch: int,
    turns: list[dict[str, Any]],
    reference: list[dict[str, Any]],
) -> dict[str, Any]:
    latencies = np.concatenate([turn["latencies_ms"] for turn in turns])
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99))
    ratios = [
        float(np.median(base["latencies_ms"]) / np.median(turn["latencies_ms"]))
        for base, turn in zip(reference, turns, strict=True)
    ]
    return {
        "role": engine.role,
        "engine": engine.kind,
        "model": engine.source,
        "precision": facts["precision"],
        "batch": batch,
        "parameters": facts["parameters"],
        "size_bytes": facts["size_bytes"],
        "sha256": facts["sha256"],
        "latency_ms": {
            "count": len(latencies),
            "min": float(latencies.min()),
            "mean": float(latencies.mean()),
            "std": float(latencies.std()),
            "p50": float(p50),
            "p95": float(p95),
            "p99": float(p99),
        },
        "throughput_images_per_s": float(batch * len(latencies) / latencies.sum() * 1e3),
        "first_result_s": facts["first_result_s"],
        "peak_rss_mb": turns[-1]["peak_rss_mb"],
        "speedup_vs_teacher": {"p50": float(np.median(ratios)), "p50_low": min(ratios), "p50_high": max(ratios)},
    }


def _describe_environment(protocol: Protocol, load_before: tuple[float, float, float]) -> dict[str, Any]:
    return {
        "cpu": read_cpu_name(),
        "logical_cores": psutil.cpu_count(),
        "threads": protocol.threads,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "onnxruntime": metadata.version("onnxruntime"),
        "loadavg_before": load_before[0],
        "loadavg_after": psutil.getloadavg()[0],
    }


def _find_warnings(environment: dict[str, Any], results: list[dict[str, Any]]) -> list[str]:
    warnings = []
    if environment["loadavg_before"] > LOADED * environment["logical_cores"]:
        warnings.append(
            f"load average {environment['loadavg_before']:.1f} on {environment['logical_cores']} cores at the start: "
            "other programs run here, so trust the ratios and not the times"
        )
    has_teacher = results[0]["role"] == "teacher"
    for result in results:
        if has_teacher and result["role"] == "student" and result["speedup_vs_teacher"]["p50"] <= 1:
            warnings.append(
                f"the student by {result['engine']} is not faster than the teacher at batch {result['batch']}"
            )
    return warnings


def read_cpu_name() -> str:
    """Returns the processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
