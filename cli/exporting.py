"""Files of several precisions, side by side: written, compared, and one of them recommended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from indistill.cli.output import emit, print_json
from indistill.errors import VerificationError
from indistill.export.artefact import Artefact, Precision
from indistill.hashing import hash_file
from indistill.progress import show_waiting

if TYPE_CHECKING:
    from indistill.export.onnx import Exporter, ExportOptions


@dataclass(frozen=True)
class WrittenFile:
    """What became of a precision: a file with its description, or the reason why there is none."""

    precision: Precision
    file: Path
    artefact: Artefact | None
    refused: str = ""


def name_files(target: Path, precisions: Sequence[Precision], *, named: bool) -> dict[Precision, Path]:
    """Returns the file of each precision: `target`, or beside it with the precision after the name.

    Args:
        target: the float32 file.
        precisions: those that are written.
        named: whether the user named the file; then a single precision is written there.
    """
    if named and len(precisions) == 1:
        return {precisions[0]: target}
    return {
        precision: target if precision == "fp32" else target.with_stem(f"{target.stem}_{precision}")
        for precision in precisions
    }
