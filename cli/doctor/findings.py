"""What `doctor` finds, and the one place where whatever goes wrong in a look becomes a finding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from indistill.errors import describe_error, escape_text

# absent: what is not there and need not be; unknown: nothing that indistill knows, whole or not
State = Literal["ok", "warning", "absent", "unknown", "broken"]
FAILING: tuple[State, ...] = ("unknown", "broken")
LONGEST = 300


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: what was looked at.
        state: one of FAILING makes the command fail.
        found: what there is.
        hint: what to do about it; empty where there is nothing to do.
    """

    name: str
    state: State
    found: str
    hint: str = ""


def look(name: str, probe: Callable[[], Finding]) -> Finding:
    """Returns what a probe finds; one that fails, in whatever way, has found that its subject is broken."""
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - a doctor that falls ill tells nothing
        return Finding(name, "broken", escape_text(describe_error(error), LONGEST))
