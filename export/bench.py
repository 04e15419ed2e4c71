"""Latency and throughput side by side: one process for each engine, rounds in turn, ratios with their spread."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from indistill import __version__
from indistill.errors import DataError, IndistillError
from indistill.export.bench_machine import describe_environment
from indistill.export.bench_process import Engine, EngineProcess
from indistill.export.bench_report import (
    BenchReport,
    Environment,
    Failure,
    Include,
    Latency,
    ProtocolRecord,
    Quality,
    Reference,
    Result,
    Speedup,
)
from indistill.export.session import Embeddings
from indistill.files.hashing import hash_file

LOADED = 0.5  # load average for each core above which figures are not to be trusted


@dataclass(frozen=True)
class Protocol:
    """How it is timed.

    Attributes:
        batches: batch sizes.
        threads: thread counts; the processes are started anew for each.
        rounds: each engine has a turn in each round.
        warmup: calls before a turn that do not count.
        iterations: calls in a turn, at least.
        min_seconds: length of a turn, at least.
        include: `network` alone, from resized images; with the `resize` of decoded ones; or with their `decode` too.
    """

    batches: tuple[int, ...] = (1, 32)
    threads: tuple[int, ...] = (1,)
    rounds: int = 5
    warmup: int = 5
    iterations: int = 10
    min_seconds: float = 0.3
    include: Include = "network"


@dataclass(frozen=True)
class Examination:
    """How good the engines' vectors are: `judge` gets the reference's vectors (N, D) and an engine's (N, D')."""

    images: Sequence[bytes]
    judge: Callable[[Embeddings, Embeddings], Quality]


@dataclass
class _Timed:
    """What became of an engine with one number of threads: `turns` by batch size, `failures` too."""

    engine: Engine
    threads: int
    facts: dict[str, Any] = field(default_factory=dict)
    turns: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    vectors: Embeddings | None = None
    unjudged: str = ""
    quality: Quality | None = None


def run_bench(
    engines: Sequence[Engine],
    images: Sequence[bytes],
    protocol: Protocol,
    on_progress: Callable[[int], None] = lambda _: None,
    examination: Examination | None = None,
) -> BenchReport:
    """Returns the figures of all engines; the first is the one that the others are compared with.

    Args:
        engines: what is timed.
        images: real images, encoded; repeated to fill a batch.
        protocol: how it is timed.
        on_progress: called with 1 after each turn; there are `count_turns` of them.
        examination: how the vectors are judged; None where only time counts.

    Raises:
        IndistillError: the first engine cannot run its model; what happens to another is a row of `failures`.
    """
    load_before = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="indistill-bench-") as folder:
        write_encoded(images, Path(folder, "images"))
        if examination is not None:
            write_encoded(examination.images, Path(folder, "examined"))
        timed = [
            part
            for threads in protocol.threads
            for part in _time_engines(engines, Path(folder), protocol, threads, on_progress)
        ]
    count = len(engines)
    warnings = [] if examination is None else _judge(timed[:count], examination)
    for part, first in zip(timed, timed[:count] * len(protocol.threads), strict=True):
        part.quality = first.quality
    results = [
        _summarise(part, batch, timed[position - position % count].turns[batch])
        for batch in protocol.batches
        for position, part in enumerate(timed)
        if batch in part.turns
    ]
    environment = describe_environment(load_before)
    return BenchReport(
        version=__version__,
        environment=environment,
        warnings=[*_find_warnings(environment, protocol, results), *warnings],
        protocol=ProtocolRecord(
            include=protocol.include,
            batches=list(protocol.batches),
            threads=list(protocol.threads),
            rounds=protocol.rounds,
            warmup=protocol.warmup,
            iterations=protocol.iterations,
            min_seconds=protocol.min_seconds,
        ),
        reference=describe_reference(engines[0]),
        results=results,
        failures=[_describe_failure(part, batch) for part in timed for batch in part.failures],
    )


def count_turns(engines: Sequence[Engine], protocol: Protocol) -> int:
    """Returns how often `run_bench` reports progress."""
    return len(engines) * len(protocol.batches) * len(protocol.threads) * protocol.rounds


def describe_reference(engine: Engine) -> Reference:
    """Returns the first engine as the report names it."""
    return Reference(role=engine.role, engine=engine.kind, model=engine.source, precision=engine.precision)


def write_encoded(images: Sequence[bytes], folder: Path) -> None:
    """Writes encoded images as the files of a new folder, in their order by name."""
    folder.mkdir()
    for number, content in enumerate(images):
        Path(folder, f"{number:06d}").write_bytes(content)


def _time_engines(
    engines: Sequence[Engine], folder: Path, protocol: Protocol, threads: int, on_progress: Callable[[int], None]
) -> list[_Timed]:
    """Returns what became of each engine. All are loaded first, one after the other, and then take turns."""
    timed = [_Timed(engine, threads) for engine in engines]
    with ExitStack() as stack:
        processes: dict[int, EngineProcess] = {}
        for position, part in enumerate(timed):
            log = folder / f"{threads}-{position}.log"
            process = EngineProcess(part.engine, threads, folder / "images", protocol.include, log)
            stack.callback(process.close)
            try:
                part.facts = process.load()
                processes[position] = process
            except IndistillError as error:
                _note_failure(timed, position, protocol.batches, error)
        for position, batch in _plan_turns(len(engines), protocol):
            on_progress(1)
            if position not in processes:
                continue
            order = {
                "batch": batch,
                "warmup": protocol.warmup,
                "iterations": protocol.iterations,
                "min_seconds": protocol.min_seconds,
            }
            try:
                timed[position].turns.setdefault(batch, []).append(processes[position].ask(order))
            except IndistillError as error:
                del processes[position]
                _note_failure(timed, position, protocol.batches[protocol.batches.index(batch) :], error)
        if (folder / "examined").is_dir() and threads == protocol.threads[0]:
            for position, process in processes.items():
                file = folder / f"{position}.npy"
                try:
                    process.ask({"examine": str(folder / "examined"), "vectors": str(file)})
                    timed[position].vectors = np.load(file)
                except IndistillError as error:
                    _note_failure(timed, position, (), error)
    return timed


def _plan_turns(engines: int, protocol: Protocol) -> Iterator[tuple[int, int]]:
    """Yields which engine has its turn, and the batch size.

    Every other round goes backwards, so that a machine that grows slower or faster favours nobody.
    """
    for batch in protocol.batches:
        for number in range(protocol.rounds):
            order = range(engines) if number % 2 == 0 else reversed(range(engines))
            yield from ((position, batch) for position in order)


def _note_failure(timed: Sequence[_Timed], position: int, batches: Sequence[int], error: IndistillError) -> None:
    if position == 0:
        raise error
    timed[position].unjudged = " ".join(str(error).split())
    for batch in batches:
        timed[position].failures[batch] = timed[position].unjudged
        timed[position].turns.pop(batch, None)


def _judge(timed: Sequence[_Timed], examination: Examination) -> list[str]:
    """Sets the quality of each engine, and returns a warning for each whose vectors cannot be judged."""
    warnings = []
    reference = timed[0].vectors
    assert reference is not None
    for part in timed:
        reason = part.unjudged
        try:
            if part.vectors is not None:
                part.quality = examination.judge(reference, part.vectors)
        except DataError as error:
            reason = str(error)
        if reason:
            warnings.append(f"{part.engine.source} by {part.engine.kind} cannot be judged: {reason}")
    return warnings


def _summarise(part: _Timed, batch: int, reference: Sequence[dict[str, Any]]) -> Result:
    engine, turns = part.engine, part.turns[batch]
    latencies = np.concatenate([turn["latencies_ms"] for turn in turns])
    p50, p90, p95, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 95, 99)))
    medians = [float(np.median(turn["latencies_ms"])) for turn in turns]
    ratios = [float(np.median(base["latencies_ms"])) / median for base, median in zip(reference, medians, strict=True)]
    is_file = part.facts["size_bytes"] is None
    return Result(
        role=engine.role,
        engine=engine.kind,
        model=engine.source,
        precision=engine.precision,
        batch=batch,
        threads=part.threads,
        image_size=engine.preprocessing.image_size,
        parameters=engine.parameters if is_file else part.facts["parameters"],
        size_bytes=Path(engine.source).stat().st_size if is_file else part.facts["size_bytes"],
        sha256=hash_file(Path(engine.source)) if is_file else None,
        latency_ms=Latency(
            count=len(latencies),
            min=float(latencies.min()),
            mean=float(latencies.mean()),
            std=float(latencies.std()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
        ),
        turn_medians_ms=medians,
        throughput_images_per_s=float(batch * len(latencies) / latencies.sum() * 1e3),
        first_result_s=part.facts["first_result_s"],
        peak_rss_mb=turns[-1]["peak_rss_mb"],
        speedup=summarise_ratios(ratios),
        quality=part.quality,
    )


def summarise_ratios(ratios: Sequence[float]) -> Speedup:
    """Returns the median, smallest and largest ratio of the rounds."""
    return Speedup(p50=float(np.median(ratios)), low=min(ratios), high=max(ratios), rounds=list(ratios))


def _describe_failure(part: _Timed, batch: int) -> Failure:
    return Failure(
        role=part.engine.role,
        engine=part.engine.kind,
        model=part.engine.source,
        precision=part.engine.precision,
        batch=batch,
        threads=part.threads,
        reason=part.failures[batch],
    )


def _find_warnings(environment: Environment, protocol: Protocol, results: Sequence[Result]) -> list[str]:
    warnings = []
    if environment.loadavg_before > LOADED * environment.logical_cores:
        warnings.append(
            f"load average {environment.loadavg_before:.1f} on {environment.logical_cores} cores at the start: "
            "other programs run here, so trust the ratios and not the times"
        )
    if max(protocol.threads) > environment.logical_cores:
        warnings.append(
            f"{max(protocol.threads)} threads on {environment.logical_cores} cores wait for one another: use at most "
            "as many threads as cores"
        )
    if results[0].role == "teacher":
        warnings += [
            f"the student {result.model} by {result.engine} is not faster than the teacher at batch {result.batch}"
            for result in results
            if result.role == "student" and result.speedup.p50 <= 1
        ]
    return list(dict.fromkeys(warnings))
