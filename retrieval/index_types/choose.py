"""The type of index by the recall that it reaches, measured on vectors that are held out of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import faiss
import numpy as np

from indistill.errors import InputError
from indistill.retrieval.index_types.trials import HeldOut, Trial, hold_out, index_gallery, measure_trial
from indistill.retrieval.index_types.types import POINTS_PER_LIST, FaissIndex, Vectors, find_ivf

EXACT_VALUES = 50_000 * 128  # an exact search took 1.7 ms on one thread of an AMD EPYC (Zen 4)
CODES = ("SQ8", "SQfp16", "Flat")  # from the smallest
LISTS_PER_ROOT = (2, 4, 8, 16)  # number of lists by the square root of the number of vectors
FEWEST_LISTS = 16


@dataclass(frozen=True)
class Targets:
    """What an index must reach.

    Attributes:
        recall: share of the k nearest that a search must find, by their distance.
        k: how many nearest.
        max_memory_bytes: of the FAISS index when it is open, mapped pages counted in.
        max_latency_ms: of one query, median, on one thread.
    """

    recall: float = 0.99
    k: int = 10
    max_memory_bytes: int | None = None
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.recall <= 1:
            raise InputError(f"a recall of {self.recall:g} cannot be reached: give more than 0 and at most 1, as 0.99")
        if self.k < 1:
            raise InputError(f"k is {self.k}: give 1 or more nearest")
        for name, value in (("memory", self.max_memory_bytes), ("latency", self.max_latency_ms)):
            if value is not None and not value > 0:
                raise InputError(f"the limit of the {name} is {value:g}: give more than 0, or leave it out")


@dataclass(frozen=True)
class Choice:
    """The type chosen, what it was measured to do, and all trials in their order; units as in `Trial`."""

    factory: str
    parameters: dict[str, int]
    recall: float
    latency_ms: float
    memory_bytes: int
    trials: tuple[Trial, ...] = field(repr=False)


def choose_type(
    vectors: Vectors,
    targets: Targets,
    *,
    seed: int = 0,
    exact_values: int = EXACT_VALUES,
    on_progress: Callable[[Trial], None] = lambda _: None,
) -> Choice:
    """Returns the type that reads the least for a query, of those that reach the recall within the limits.

    Small sets are searched exactly. Otherwise queries are drawn from the vectors and kept out of every index that is
    tried; a recall counts as reached where it is by more than its standard error, so that it holds on other queries.
    The same vectors give the same choice, unless a latency is asked for. A copy of the vectors is held meanwhile.

    Args:
        vectors: (N, D), unit rows, at least one.
        targets: recall and limits.
        seed: of the queries and of training.
        exact_values: N x D up to which an exact search is taken where the limits allow it.
        on_progress: called with each trial when it is done.

    Raises:
        InputError: a limit cannot be kept; the message names the nearest that can.
    """
    held = hold_out(np.ascontiguousarray(vectors, np.float32), targets.k, seed)
    trials: list[Trial] = []

    def record(trial: Trial) -> Trial:
        trials.append(trial)
        on_progress(trial)
        return trial

    exact = record(_try_whole("Flat", held, seed))
    if vectors.size <= exact_values and _keeps_limits(exact, targets):
        return _choose(exact, trials)
    codes = [code for code in CODES if code == "Flat" or _reaches(record(_try_whole(code, held, seed)), targets)]
    least: int | None = None
    for lists in _list_sizes(len(held.gallery)):
        start = len(trials)
        _try_lists(f"IVF{lists}", codes, held, targets, seed, record)
        read = min((t.read_bytes for t in trials[start:] if _reaches(t, targets)), default=exact.read_bytes)
        if least is not None and read >= least:
            break  # more lists cost more centroids than they spare codes
        least = read
    fitting = [t for t in trials if _reaches(t, targets) and _keeps_limits(t, targets)]
    if not fitting:
        raise InputError(_describe_refusal([t for t in trials if _reaches(t, targets)], targets))
    return _choose(min(fitting, key=lambda t: (t.read_bytes, t.memory_bytes)), trials)


def _list_sizes(count: int) -> list[int]:
    """Powers of two, with vectors enough to train each."""
    sizes = [2 ** round(math.log2(factor * math.sqrt(count))) for factor in LISTS_PER_ROOT]
    return [size for size in sizes if size * POINTS_PER_LIST <= count and size >= FEWEST_LISTS]


def _try_whole(code: str, held: HeldOut, seed: int) -> Trial:
    factory = f"IDMap,{code}"
    return measure_trial(index_gallery(factory, held, seed), factory, {}, held)


def _try_lists(
    lists: str, codes: list[str], held: HeldOut, targets: Targets, seed: int, record: Callable[[Trial], Trial]
) -> None:
    """Tries the codes from the smallest on, as long as a larger one needs to read less; the lists are the same."""
    centroids: FaissIndex | None = None
    least: int | None = None
    for code in codes:
        index = index_gallery(f"{lists},{code}", held, seed, centroids)
        centroids = centroids or faiss.clone_index(find_ivf(index).quantizer)
        best = _climb(index, f"{lists},{code}", held, targets, record)
        if least is not None and best.read_bytes >= least:
            break
        least = best.read_bytes


def _climb(index: FaissIndex, factory: str, held: HeldOut, targets: Targets, record: Callable[[Trial], Trial]) -> Trial:
    """Doubles nprobe until the recall is reached, then halves the last step while it is more than an eighth."""
    lists = find_ivf(index).nlist
    low, high = 0, 1
    best = record(measure_trial(index, factory, {"nprobe": high}, held))
    while not _reaches(best, targets) and high < lists:
        low, high = high, min(2 * high, lists)
        best = record(measure_trial(index, factory, {"nprobe": high}, held))
    while high - low > max(1, low // 8) and _reaches(best, targets):
        middle = (low + high) // 2
        trial = record(measure_trial(index, factory, {"nprobe": middle}, held))
        if _reaches(trial, targets):
            best, high = trial, middle
        else:
            low = middle
    return best


def _reaches(trial: Trial, targets: Targets) -> bool:
    return trial.recall - trial.recall_error >= targets.recall


def _fits_memory(trial: Trial, targets: Targets) -> bool:
    return targets.max_memory_bytes is None or trial.memory_bytes <= targets.max_memory_bytes


def _keeps_limits(trial: Trial, targets: Targets) -> bool:
    quick = targets.max_latency_ms is None or trial.latency_ms <= targets.max_latency_ms
    return quick and _fits_memory(trial, targets)


def _choose(trial: Trial, trials: list[Trial]) -> Choice:
    return Choice(
        trial.factory, trial.parameters, trial.recall, trial.latency_ms, trial.memory_bytes, trials=tuple(trials)
    )


def _describe_refusal(reached: list[Trial], targets: Targets) -> str:
    """Of the trials that reach the recall, at least one of them exact, names the one nearest to the limits."""
    small = [t for t in reached if _fits_memory(t, targets)]
    if not small and targets.max_memory_bytes is not None:
        best = min(reached, key=lambda t: t.memory_bytes)
        asked, needed = _format_bytes(targets.max_memory_bytes, round), _format_bytes(best.memory_bytes, math.ceil)
        return (
            f"at recall {targets.recall:g} the smallest index is {needed} ({best.factory}); {asked} is too little: "
            f"allow {needed} or lower --recall"
        )
    best = min(small, key=lambda t: t.latency_ms)
    needed = f"{math.ceil(1000 * best.latency_ms) / 1000:g} ms"
    within = f" within {_format_bytes(targets.max_memory_bytes, round)}" if targets.max_memory_bytes else ""
    return (
        f"at recall {targets.recall:g}{within} the fastest index takes {needed} for a query ({best.factory}); "
        f"{targets.max_latency_ms:g} ms is too little: allow a little more than {needed}, or lower --recall"
    )


def _format_bytes(size: int, rounded: Callable[[float], int]) -> str:
    """What is needed is rounded up, so that a limit of what is named is kept."""
    for name, unit in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= 10 * unit:
            return f"{rounded(size / unit)} {name}"
    return f"{size} bytes"
