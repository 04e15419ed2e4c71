"""One engine in a process of its own, timed on request. Started by `indistill.export.bench`; speaks JSON lines.

The first line on standard input says what to load; the answer is the time to the first result. Each further line asks
for a number of calls with one batch; the answer is their durations.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()


def load_engine(order: dict[str, Any]) -> tuple[Callable[[Any], object], dict[str, Any]]:
    """Returns a function that embeds pixels (B, S, S, 3) uint8, and what is known of the engine."""
    if order["kind"] == "onnxruntime":
        from indistill.export.session import EmbeddingSession

        path = Path(order["source"])
        session = EmbeddingSession(path, order["threads"])
        facts: dict[str, Any] = {
            "precision": session.artefact.precision,
            "size_bytes": path.stat().st_size,
            "sha256": session.sha256,
        }
        return session.embed_pixels, facts | {"parameters": None}

    import torch

    from indistill.export.onnx import DeployedNetwork
    from indistill.models.loading import load_network
    from indistill.preprocess import Preprocessing

    torch.set_num_threads(order["threads"])
    weights = Path(order["weights"]) if order["weights"] else None
    network = load_network(order["source"], weights=weights, arguments=order["arguments"])
    deployed = DeployedNetwork(network, Preprocessing.from_dict(order["preprocessing"]), fold=False)
    state = network.module.state_dict().values()
    size_bytes = sum(value.numel() * value.element_size() for value in state)
    facts = {"precision": "fp32", "size_bytes": size_bytes, "sha256": None}
    return deployed.embed_pixels, facts | {"parameters": network.count_parameters()}


def read_peak_memory_mb() -> float | None:
    """Returns the largest resident size of this process, where the system tells (`getrusage` counts the parent too)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def main() -> None:
    """Answers orders until standard input ends."""
    import numpy as np

    from indistill.errors import IndistillError

    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not end up among the answers

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    order = json.loads(sys.stdin.readline())
    pixels = np.load(order["pixels"])
    try:
        embed, facts = load_engine(order)
    except IndistillError as error:
        answer({"error": str(error), "exit_code": error.exit_code})
        return
    embed(pixels[:1])
    answer(facts | {"first_result_s": time.perf_counter() - STARTED})
    for line in sys.stdin:
        request = json.loads(line)
        batch = pixels[np.arange(request["batch"]) % len(pixels)]
        latencies_ms: list[float] = []
        for _ in range(request["warmup"]):
            embed(batch)
        started = time.perf_counter()
        while len(latencies_ms) < request["iterations"] or time.perf_counter() - started < request["min_seconds"]:
            begin = time.perf_counter()
            embed(batch)
            latencies_ms.append((time.perf_counter() - begin) * 1e3)
        answer({"latencies_ms": latencies_ms, "peak_rss_mb": read_peak_memory_mb()})


if __name__ == "__main__":
    main()
