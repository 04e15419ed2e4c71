"""The options of `compress` that say what the student is, and what is printed while its width is searched."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from indistill.talk import say

if TYPE_CHECKING:
    from indistill.models.fitting import Trial
    from indistill.models.students import StudentChoice
    from indistill.runs.settings import RunSettings


def choose_student(
    spec: str, weights: Path | None, latency: str | None, size: str | None, from_scratch: bool, settings: "RunSettings"
) -> "StudentChoice":
    """Returns what the options ask for; a run that is resumed keeps the width that was found for it.

    Raises:
        InputError: options that cannot be read, or do not belong together.
        ModelError: a width that is none.
    """
    from indistill.models.fitting import Target, parse_latency, parse_size
    from indistill.models.students import StudentChoice, check_choice, parse_width
    from indistill.runs.resume import read_width

    target = None
    if latency is not None or size is not None:
        target = Target(
            parse_latency(latency) if latency is not None else None, parse_size(size) if size is not None else None
        )
    choice = StudentChoice(spec, weights, target, from_scratch, settings.seed)
    check_choice(choice, parse_width(spec))
    if target is not None and settings.resume:
        return replace(choice, spec=f"width:{read_width(settings.out):g}", target=None)
    return choice


def print_trial(trial: "Trial") -> None:
    """Prints a row of the table of widths that were tried."""
    latency = "" if trial.latency is None else f"  {trial.latency_ms:8.2f} ms  {trial.latency:5.2f}x"
    threads = "" if trial.latency is None else f"  ({trial.threads} threads, batch 1)"
    say(
        f"width:{trial.width:<8g} {trial.parameters:>12,} parameters  {trial.size_bytes / 1e6:8.2f} MB{latency}"
        f"  {'meets the target' if trial.met else 'does not'}{threads}"
    )
