"""Which precision to ship: one plain sentence from what was measured. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from indistill.export.artefact import Precision

FASTER = 1.05  # a smaller gain is not worth another file
NAMES: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


@dataclass(frozen=True)
class TimedFile:
    """A file with what it costs and what it loses.

    Attributes:
        precision: of the file.
        name: of the file.
        size_bytes: of the file.
        latency_ms: median of a call with one image.
        speedup: how many times as fast as float32: median of the rounds.
        speedup_low: smallest of the rounds.
        speedup_high: largest of the rounds.
        metric: what `drop` is of.
        drop: how much retrieval loses to PyTorch in float32.
    """

    precision: Precision
    name: str
    size_bytes: int
    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    metric: str
    drop: float


def give_verdict(files: Sequence[TimedFile], refused: Sequence[Precision] = ()) -> str:
    """Returns what to ship, and why.

    A file is called faster, or slower, only if it was so in every round.

    Args:
        files: those that passed their gates, float32 among them.
        refused: precisions that did not.
    """
    full = next(file for file in files if file.precision == "fp32")
    others = [file for file in files if file.precision != "fp32"]
    faster = [file for file in others if file.speedup_low > 1 and file.speedup >= FASTER]
    parts = [_compare(file, full) for file in others]
    parts += [f"{NAMES[precision]} does not pass its gates" for precision in refused]
    if faster:
        best = max(faster, key=lambda file: file.speedup)
        parts.append(f"ship {best.name}")
    else:
        smallest = min(others, key=lambda file: file.size_bytes, default=full)
        advice = f"keep float32, {full.name}"
        if smallest.size_bytes < full.size_bytes:
            advice += f", unless the size of the file matters more than its speed: then {smallest.name}"
        parts.append(advice)
    return "; ".join(parts) + "."


def _compare(file: TimedFile, full: TimedFile) -> str:
    name, spread = NAMES[file.precision], f"{file.speedup_low:.2f} to {file.speedup_high:.2f}"
    if file.speedup_low > 1 and file.speedup >= FASTER:
        speed = f"{file.speedup:.2f} times as fast as float32 here ({spread})"
    elif file.speedup_high < 1:
        speed = f"slower than float32 here, {file.speedup:.2f} times its speed ({spread})"
    else:
        speed = f"about as fast as float32 here ({spread})"
    size = f"with {file.size_bytes / full.size_bytes:.2f} of its size"
    change = f"{'gains' if round(file.drop, 4) < 0 else 'loses'} {abs(file.drop):.4f} of {file.metric}"
    return f"{name} is {speed}, {size}, and {change}"
