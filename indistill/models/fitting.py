"""The widest network that meets a target of latency or size."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from indistill.errors import InputError
from indistill.stages.graph import Embedder, freeze

STEPS = 32  # widths that are considered are multiples of 1/32
CALLS = 15  # of each network in a measurement, by turns, at least
WARM_UP = 2  # first calls that do not count, as they allocate memory
SECONDS = 0.3  # that a measurement takes, at least
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Target:
    """What a student must not exceed; None for no limit.

    Attributes:
        latency: share of the teacher's own latency, in (0, 1).
        size_bytes: of the float32 weights.
    """

    latency: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """A width that was tried.

    Attributes:
        width: the share of channels.
        parameters: how many there are.
        size_bytes: of the parameters and buffers.
        latency_ms: median of a call with one image by PyTorch on the CPU; None where no latency is asked for.
        latency: the same as a share of the teacher's, measured by turns with it.
        threads: of PyTorch.
        met: whether it meets the target.
    """

    width: float
    parameters: int
    size_bytes: int
    latency_ms: float | None
    latency: float | None
    threads: int
    met: bool


@dataclass(frozen=True)
class Reference:
    """The network that is made narrower: the teacher, its embedding's node, and the side of its images in pixels."""

    module: nn.Module
    embedding: str
    image_size: int


def parse_latency(text: str) -> float:
    """Returns the share of the teacher's latency of a text such as `0.25x`.

    Raises:
        InputError: it has another form, or is not below the teacher's own.
    """
    match = re.fullmatch(r"(\d*\.?\d+)x", text.strip())
    if match is None or not 0 < float(match[1]) < 1:
        raise InputError(f"--target-latency '{text}' is not a share of the teacher's latency, as 0.25x (below 1x)")
    return float(match[1])


def parse_size(text: str) -> int:
    """Returns the bytes of a text such as `5MB`; KB, MB and GB are powers of 1000.

    Raises:
        InputError: it has another form.
    """
    match = re.fullmatch(r"(\d*\.?\d+)\s*(B|KB|MB|GB)", text.strip().upper())
    if match is None or float(match[1]) == 0:
        raise InputError(f"--target-size '{text}' is not a size, as 5MB or 800KB")
    return int(float(match[1]) * UNITS[match[2]])


def count_bytes(module: nn.Module) -> int:
    """Returns the bytes of a network's parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


def measure_latency(reference: Reference, module: nn.Module) -> tuple[float, float]:
    """Returns the latency in ms of a narrower network, and its share of the reference's.

    Both are called by turns with one image, as far as the embedding and with batch norm folded; medians count.
    """
    image = torch.zeros(1, 3, reference.image_size, reference.image_size)
    embedders = [freeze(Embedder(network, reference.embedding)) for network in (reference.module, module)]
    seconds: list[list[float]] = [[], []]
    begun = time.perf_counter()
    with torch.inference_mode():
        while len(seconds[0]) < WARM_UP + CALLS or time.perf_counter() - begun < SECONDS:
            for embedder, taken in zip(embedders, seconds, strict=True):
                started = time.perf_counter()
                embedder(image)
                taken.append(time.perf_counter() - started)
    whole, narrow = (median(taken[WARM_UP:]) for taken in seconds)
    return 1e3 * narrow, narrow / whole


def find_width(
    reference: Reference,
    target: Target,
    build: Callable[[float], nn.Module],
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> float:
    """Returns the largest width, of the multiples of 1/32, whose network meets a target, by bisection.

    Args:
        reference: the teacher.
        target: at least one limit.
        build: makes the narrow network of a width.
        on_trial: called with each width that was tried.

    Raises:
        InputError: the teacher itself meets the target, or no width does; the message says what can be had.
    """
    size_bytes = count_bytes(reference.module)
    if target.latency is None and (target.size_bytes is None or size_bytes <= target.size_bytes):
        raise InputError(f"the teacher has {size_bytes / 1e6:.2f} MB, no more than --target-size: name a smaller size")

    def attempt(step: int) -> Trial:
        module = build(step / STEPS)
        latency_ms, latency = (None, None) if target.latency is None else measure_latency(reference, module)
        size = count_bytes(module)
        met = target.size_bytes is None or size <= target.size_bytes
        if latency is not None and target.latency is not None:
            met = met and latency <= target.latency
        parameters = sum(parameter.numel() for parameter in module.parameters())
        trial = Trial(step / STEPS, parameters, size, latency_ms, latency, torch.get_num_threads(), met)
        on_trial(trial)
        return trial

    narrowest = attempt(1)
    if not narrowest.met:
        raise InputError(_describe_nearest(narrowest))
    low, high = 1, STEPS  # the width of `low` meets the target, that of `high` is the teacher's
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle).met:
            low = middle
        else:
            high = middle
    return low / STEPS


def _describe_nearest(trial: Trial) -> str:
    latency = "" if trial.latency is None else f" and takes {trial.latency:.2f}x the teacher's time"
    return (
        f"no width meets the target: the nearest, width:{trial.width:g}, has {trial.size_bytes / 1e6:.2f} MB{latency}; "
        "ask for no less than that, or name a student of its own with --student"
    )
