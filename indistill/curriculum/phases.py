"""The curriculum as data: which loss is trained, for how many epochs, at which learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Objective = Literal["stage", "joint", "embedding", "classes"]
Kind = Literal["paper", "joint", "reversed", "equal", "none", "adaptive"]


@dataclass(frozen=True)
class Phase:
    """A part of the schedule with one loss.

    Attributes:
        name: what the progress bar and the report call it.
        objective: `stage` imitates the teacher's stage, `joint` all stages at once, `embedding` distils the embedding,
            `classes` is supervised.
        stage: the number of the stage from 1, where the objective is `stage`; else 0.
        epochs: at least one.
        lr: learning rate.
        tolerance: the phase ends early, and leaves its epochs to the embedding, when its loss falls by less than this
            share from one epoch to the next; 0 for never.
    """

    name: str
    objective: Objective
    stage: int
    epochs: int
    lr: float
    tolerance: float = 0.0


def build_warm_up(stages: int, first: int, lr: float) -> tuple[Phase, ...]:
    """Returns the warm-up: the stages one after the other, stage i (from 1) for `first` + i epochs.

    Reference: InDistill (arXiv 2205.10003), the curriculum by layer difficulty; `first` is its a, 2 in the paper.
    """
    return tuple(Phase(f"stage {i}", "stage", i, first + i, lr) for i in range(1, stages + 1))


def arrange_warm_up(paper: tuple[Phase, ...], kind: Kind, tolerance: float) -> tuple[Phase, ...]:
    """Returns another warm-up of as many epochs as the paper's: the counterparts that show what its order is worth.

    Args:
        paper: the warm-up by `build_warm_up`.
        kind: `joint` trains all stages at once, `reversed` the last stage first, `equal` gives all stages as many
            epochs (the later ones one more where they do not divide), `adaptive` ends a stage when its loss no longer
            falls, `none` leaves the warm-up out.
        tolerance: of `adaptive`; see `Phase`.
    """
    if not paper or kind == "none":
        return ()
    total = count_epochs(paper)
    match kind:
        case "paper":
            return paper
        case "joint":
            return (Phase("all stages", "joint", 0, total, paper[0].lr),)
        case "reversed":
            return paper[::-1]
        case "equal":
            shares = [(total + i) // len(paper) for i in range(len(paper))]
            return tuple(replace(phase, epochs=share) for phase, share in zip(paper, shares, strict=True))
        case "adaptive":
            return tuple(replace(phase, tolerance=tolerance) for phase in paper)


def has_stalled(losses: Sequence[float], tolerance: float) -> bool:
    """Returns whether the last of the mean losses of a phase's epochs is lower than the one before by less than the
    tolerance, a share of it.
    """
    return tolerance > 0 and len(losses) > 1 and losses[-2] - losses[-1] < tolerance * losses[-2]


def end_phase(phases: Sequence[Phase], durations: Sequence[int], ended: int, epochs: int) -> list[int]:
    """Returns the epochs of each phase when one ends early: what it leaves goes to the first phase of the embedding
    after it.

    Args:
        phases: the schedule.
        durations: the epochs of each phase so far.
        ended: index of the phase that ends.
        epochs: what it has had.
    """
    heir = next(i for i, phase in enumerate(phases) if i > ended and phase.objective == "embedding")
    changed = list(durations)
    changed[heir] += changed[ended] - epochs
    changed[ended] = epochs
    return changed


def build_curriculum(warm_up: tuple[Phase, ...], epochs: int, lr: float, final: tuple[int, float]) -> tuple[Phase, ...]:
    """Returns the whole of InDistill: the warm-up, the embedding until `epochs` have passed, and final epochs at
    another learning rate.

    Args:
        warm_up: phases that come first and count towards `epochs`; none for the embedding loss alone.
        epochs: warm-up and embedding at `lr` together; the embedding gets one epoch at least.
        lr: learning rate of the embedding.
        final: number of final epochs, and their learning rate.
    """
    remaining = max(1, epochs - sum(phase.epochs for phase in warm_up))
    main = Phase("embedding", "embedding", 0, remaining, lr)
    return (*warm_up, main, *_build_final("embedding", "embedding", final))


def build_supervised(epochs: int, lr: float, final: tuple[int, float]) -> tuple[Phase, ...]:
    """Returns supervised training: `epochs` at `lr`, then final epochs at another learning rate."""
    return (Phase("classes", "classes", 0, epochs, lr), *_build_final("classes", "classes", final))


def scale_epochs(phases: tuple[Phase, ...], epochs: int) -> tuple[Phase, ...]:
    """Returns the schedule stretched to a total in proportion, every phase keeping at least one epoch.

    Rounding goes by largest remainder, so that the total is exact where it is not below the number of phases.

    Raises:
        ValueError: `epochs` is below one.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}, at least 1 is needed")
    extra = max(0, epochs - len(phases))  # epochs beyond the one that every phase keeps
    weights = [phase.epochs * epochs / count_epochs(phases) - 1 for phase in phases]
    weights = [max(0.0, weight) for weight in weights]
    total = sum(weights) or 1.0
    shares = [weight * extra / total for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(phases)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: extra - sum(counts)]:
        counts[i] += 1
    counts = [1 + count for count in counts]
    return tuple(replace(phase, epochs=count) for phase, count in zip(phases, counts, strict=True))


def count_epochs(phases: Sequence[Phase]) -> int:
    """Returns the epochs of the whole schedule."""
    return sum(phase.epochs for phase in phases)


def _build_final(name: str, objective: Objective, final: tuple[int, float]) -> tuple[Phase, ...]:
    epochs, lr = final
    return (Phase(f"{name}, final", objective, 0, epochs, lr),) if epochs else ()
