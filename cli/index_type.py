"""From options to the type of an index, and the table of what was tried."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from indistill.errors import InputError
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.export.session import Embeddings
    from indistill.retrieval.index_types.trials import Trial
    from indistill.retrieval.store.build import IndexType

SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}

RecallOption = Annotated[
    float | None,
    typer.Option(
        "--recall", min=0, max=1, help="Of the ten nearest, the share that a search finds.", show_default="0.99"
    ),
]
MemoryOption = Annotated[
    str | None, typer.Option("--max-memory", metavar="SIZE", help="Of the open index, as 512MB; or it is refused.")
]
LatencyOption = Annotated[
    str | None, typer.Option("--max-latency", metavar="TIME", help="Of one query on one thread, as 5ms; or refused.")
]
FactoryOption = Annotated[
    str | None,
    typer.Option("--factory", metavar="STRING", help="FAISS's name of the type, in place of one that is measured."),
]


def make_chooser(
    recall: float | None,
    max_memory: str | None,
    max_latency: str | None,
    factory: str | None,
    dimension: int | None = None,
) -> "Callable[[Embeddings], IndexType]":
    """Returns what chooses the type of an index for its vectors: by measurement, or the one that is named.

    Args:
        recall: the share of the nearest that is to be found.
        max_memory: the limit of the memory, with its unit.
        max_latency: the limit of the latency, with its unit.
        factory: FAISS's name of the type.
        dimension: of the vectors, where it is known before they are; the name is checked at once.

    Raises:
        InputError: a limit cannot be read, both ways are asked for, or the type is none that an index can have.
    """
    from indistill.retrieval.index_types.choose import Targets, choose_type
    from indistill.retrieval.index_types.types import check_factory, warn_of_factory
    from indistill.retrieval.store.build import IndexType

    if factory is not None:
        given = {"--recall": recall, "--max-memory": max_memory, "--max-latency": max_latency}
        unused = ", ".join(name for name, value in given.items() if value is not None)
        if unused:
            raise InputError(f"--factory names the type: leave {unused} out")
        named = factory
        if dimension is not None:
            check_factory(named, dimension)

        def take(vectors: "Embeddings") -> "IndexType":
            made = check_factory(named, vectors.shape[1])
            warning = warn_of_factory(made)
            if warning:
                say(f"warning: {warning}")
            return IndexType(made)

        return take
    targets = Targets(
        recall=0.99 if recall is None else recall,
        max_memory_bytes=None if max_memory is None else int(read_unit("--max-memory", max_memory, SIZES)),
        max_latency_ms=None if max_latency is None else read_unit("--max-latency", max_latency, TIMES_MS),
    )

    def choose(vectors: "Embeddings") -> "IndexType":
        choice = choose_type(vectors, targets)
        if len(choice.trials) > 1:
            _print_trials(choice.trials)
        return IndexType(choice.factory, choice.parameters, tuple(asdict(trial) for trial in choice.trials))

    return choose


def read_unit(option: str, text: str, units: dict[str, float] | dict[str, int]) -> float:
    """Returns a number with a unit, in the smallest unit.

    Args:
        option: where it was given, for the message.
        text: as `512MB`; the case of the unit does not matter.
        units: size of each unit, by name; the empty name is for a number alone.

    Raises:
        InputError: it is no such number.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    known = {name.lower(): value for name, value in units.items()}
    if found is None or found[2].lower() not in known:
        raise InputError(f"{option} {text}: give a number with {', '.join(name for name in units if name)}")
    value = float(found[1]) * known[found[2].lower()]
    if not math.isfinite(value):
        raise InputError(f"{option} {text}: too large")
    return value


def _print_trials(trials: "tuple[Trial, ...]") -> None:
    """Prints what was tried, to standard error: what the index is, is the data."""
    from indistill.cli.output import format_table

    rows = [
        [
            trial.factory,
            ", ".join(f"{name} {value}" for name, value in trial.parameters.items()) or "-",
            f"{trial.recall:.4f}",
            f"{trial.memory_bytes / 1e6:,.1f}",
            f"{trial.latency_ms:.3f}",
            f"{trial.queries_per_s:,.0f}",
        ]
        for trial in trials
    ]
    header = ["tried", "parameters", "recall@10", "MB", "ms, one query", "queries/s"]
    typer.echo(format_table(header, rows), err=True)
