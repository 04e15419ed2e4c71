"""Whether a bench is slower than an older one, beyond the noise that both measured: the rule is in docs/bench.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from indistill.errors import InputError
from indistill.export.bench import Protocol, describe_reference
from indistill.export.bench_process import Engine
from indistill.export.bench_report import BenchReport, Reference, RowKey, Speedup

MIN_ROUNDS = 4  # two times four rounds lie apart by chance once in 70 times, two times five once in 252
TOLERANCE = 0.05

Verdict = Literal["slower", "faster", "same", "fails", "not measured"]


@dataclass(frozen=True)
class Change:
    """A row in both reports.

    Attributes:
        key: which row.
        old: the old ratio to the reference, median of the rounds.
        new: the new one; None where the row was not measured.
        change: of the ratio: -0.1 is a tenth slower than before, when both are measured by their references.
        noise: the change that the spreads of both benches allow by themselves.
        verdict: `slower` and `fails` are regressions.
    """

    key: RowKey
    old: float
    new: float | None
    change: float
    noise: float
    verdict: Verdict


def check_comparable(old: BenchReport, reference: Engine, protocol: Protocol) -> None:
    """Raises InputError where a bench cannot be compared with an old report, before it takes its time.

    Args:
        old: the earlier report.
        reference: what the later one's ratios are to.
        protocol: of the later one.
    """
    for name, count in (("OLD", old.protocol.rounds), ("this bench", protocol.rounds)):
        if count < MIN_ROUNDS:
            raise InputError(
                f"--compare needs {MIN_ROUNDS} rounds or more to know the noise, and {name} has {count}: set --rounds"
            )
    new = describe_reference(reference)
    if old.reference != new:
        raise InputError(
            f"the ratios of OLD are to {_name(old.reference)}, and these to {_name(new)}: only ratios to the same "
            "reference can be compared"
        )
    if old.protocol.include != protocol.include:
        raise InputError(
            f"OLD was timed with --include {old.protocol.include}, and this with {protocol.include}: use the same"
        )


def compare_reports(old: BenchReport, new: BenchReport, tolerance: float = TOLERANCE) -> list[Change]:
    """Returns what became of each row of an old report; the reference's own row, which is always 1, is left out.

    Args:
        old: the earlier report.
        new: the later one; see `check_comparable`.
        tolerance: a smaller change than this is none.

    Raises:
        InputError: they have no row in common.
    """
    measured = {result.key: result.speedup for result in new.results}
    failed = {failure.key for failure in new.failures}
    reference = (old.reference.role, old.reference.model, old.reference.engine, old.reference.precision)
    before = {result.key: result.speedup for result in old.results if result.key[:4] != reference}
    if not before.keys() & (measured.keys() | failed):
        raise InputError("OLD has no row of the same model, engine, precision, batch and threads as this bench")
    changes = []
    for key, speedup in before.items():
        if key in measured:
            changes.append(judge_change(key, speedup, measured[key], tolerance))
        else:
            changes.append(Change(key, speedup.p50, None, 0.0, 0.0, "fails" if key in failed else "not measured"))
    return changes


def judge_change(key: RowKey, old: Speedup, new: Speedup, tolerance: float) -> Change:
    """Returns whether a ratio fell or rose: by more than the tolerance, and so that no round of the one bench reaches
    any round of the other.
    """
    change = new.p50 / old.p50 - 1
    noise = 1 - old.low / old.p50 * (new.p50 / new.high) if change < 0 else old.high / old.p50 * (new.p50 / new.low) - 1
    beyond = abs(change) > max(noise, tolerance)
    verdict: Verdict = ("slower" if change < 0 else "faster") if beyond else "same"
    return Change(key, old.p50, new.p50, change, noise, verdict)


def list_differences(old: BenchReport, new: BenchReport) -> list[str]:
    """Returns how the machine and the protocol differ, as warnings."""
    before, after = old.environment, new.environment
    pairs: list[tuple[str, object, object]] = [
        ("cpu", before.cpu, after.cpu),
        ("cpu_flags", " ".join(before.cpu_flags), " ".join(after.cpu_flags)),
        ("logical_cores", before.logical_cores, after.logical_cores),
        ("os", before.os, after.os),
        ("python", before.python, after.python),
        ("governor", before.governor, after.governor),
        *(
            (package, before.packages.get(package), after.packages.get(package))
            for package in sorted(before.packages.keys() | after.packages.keys())
        ),
        ("rounds", old.protocol.rounds, new.protocol.rounds),
        ("min_seconds", old.protocol.min_seconds, new.protocol.min_seconds),
    ]
    return [f"{name} was {first}, and is {second}" for name, first, second in pairs if first != second]


def list_regressions(changes: Sequence[Change]) -> list[Change]:
    """Returns the rows that are slower than before, or fail now."""
    return [change for change in changes if change.verdict in ("slower", "fails")]


def _name(reference: Reference) -> str:
    return f"{reference.model} by {reference.engine} ({reference.precision})"
