"""What is printed before a training, on standard error: the pairs of stages, and the schedule."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from indistill.curriculum.phases import Phase, count_epochs
from indistill.distillation.pairing import Pairing
from indistill.errors import escape_text
from indistill.progress import make_console
from indistill.talk import say

WIDE = 10_000  # of a table that goes into a file: no line is broken


def print_pairing(pairing: Pairing) -> None:
    """Prints the pairs of stages with their sizes and what is kept of the teacher's, and what was left out."""
    for reason in pairing.skipped:
        say(f"warning: {reason}, and it is skipped; --pair TEACHER:STUDENT names others")
    rows = [
        [
            f"{row['teacher']}:{row['student']}",
            *(f"{side}x{side}" if side else "vector" for side in (row["teacher_side"], row["student_side"])),
            f"{row['kept']} of {row['teacher_width']}",
            "" if row["energy"] is None else f"{100 * row['energy']:.1f} %",
        ]
        for row in pairing.describe()
    ]
    if rows:
        _print_table(["stages (teacher:student)", "teacher map", "student map", "channels kept", "of the energy"], rows)


def print_schedule(phases: Sequence[Phase], asked: int | None) -> None:
    """Prints the phases with their epochs and learning rates, and says if that is more than was asked for."""
    _print_table(
        ["phase", "epochs", "learning rate"],
        [
            [phase.name, f"up to {phase.epochs}" if phase.tolerance else str(phase.epochs), f"{phase.lr:g}"]
            for phase in phases
        ],
    )
    total = count_epochs(phases)
    if asked is not None and total > asked:
        say(f"note: {total} epochs, not the {asked} of --epochs: each phase has one at least")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(escape_text, row))
    console = make_console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)
