"""What goes to standard output: data, as a table or as JSON. Talk goes to standard error."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from indistill.cli.stdout import emit
from indistill.errors import escape_text
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.export.artefact import Artefact
    from indistill.export.opening import ModelFile

WIDE = 10_000
LONGEST_CELL = 4096


def print_run(folder: Path, *, teacher: bool = False) -> None:
    """Prints the run folder, and on standard error what may be done with it, as a student or as a teacher."""
    emit(str(folder))
    if teacher:
        say(f"Next: indistill compress --teacher {folder} --data IMAGES --out RUN")
    say(f"{'  or' if teacher else 'Next'}: indistill export {folder} --onnx")


def print_model(file: Path, model: "ModelFile", artefact: "Artefact | None", *, as_json: bool) -> None:
    """Prints what an ONNX file is and what it says of itself; its texts are anyone's and are made harmless."""
    facts = asdict(model) | {"parameters": sum(model.elements.values()), "artefact": artefact and asdict(artefact)}
    if as_json:
        print_json({"file": str(file)} | facts, ascii_only=True)
        return
    described = facts["artefact"] or {"written by": "another program: it does not say how images are prepared for it"}
    shown = {f"indistill.{name}" for name in described}
    if artefact is not None:
        described = {"metadata": f"format {artefact.format}"} | described
        described.pop("format")
    lines = {
        "file": str(file),
        "size": f"{model.size_bytes / 1e6:.2f} MB",
        "SHA-256": model.sha256,
        "format": f"opset {model.opset}, IR version {model.ir_version}",
        "producer": model.producer,
        "takes": ", ".join(map(str, model.inputs)),
        "gives": ", ".join(map(str, model.outputs)),
        "operators": ", ".join(f"{count} {name}" for name, count in model.operators.items()),
        "parameters": f"{facts['parameters']:,}",
        "of type": ", ".join(f"{name} {count:,}" for name, count in model.elements.items()),
        **described,
        # Under a name of their own: what a file says must not stand in for what it is.
        **{f"metadata {name}": text for name, text in sorted(model.metadata.items()) if name not in shown},
    }
    for name, value in lines.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        emit(f"{escape_text(name, 60) + ' ':<17}{escape_text(text, 1000)}".rstrip())


def print_closeness(run: Path, figures: dict[str, Any], *, as_json: bool) -> None:
    """Prints how close the student is to its teacher, and the metrics where there are labels."""
    from indistill.cli.closeness import (
        describe_gallery,
        describe_images,
        find_shortfall,
        tabulate_closeness,
        tabulate_retrieval,
    )

    if as_json:
        print_json(figures)
    else:
        print_table(*tabulate_closeness(figures))
        if figures["retrieval"] is not None:
            print_table(*tabulate_retrieval(figures))
            say(describe_gallery(figures["retrieval"]))
        say(describe_images(figures))
    shortfall = find_shortfall(figures)
    if shortfall is not None:
        say(f"warning: {shortfall}")
    if figures["skipped"]:
        say(f"warning: {figures['skipped']} images were skipped")
    say(f"wrote {run / 'report.html'}")


def print_closeness_briefly(run: Path, figures: dict[str, Any]) -> None:
    """Prints on standard error how close the student of a run is to its teacher, and warns if it is not."""
    from indistill.cli.closeness import describe_images, find_shortfall, tabulate_closeness

    typer.echo(format_table(*tabulate_closeness(figures)), err=True)
    say(describe_images(figures))
    shortfall = find_shortfall(figures)
    if shortfall is not None:
        say(f"warning: {shortfall}")
    say(f"wrote {run / 'report.html'}")


def print_json(data: object, *, ascii_only: bool = False) -> None:
    """Prints JSON, text as it is and not escaped; or in ASCII, where anyone may have written it."""
    emit(json.dumps(data, ensure_ascii=ascii_only, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first column is text and whose others are figures."""
    emit(format_table(header, rows), styled=True)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first column is text and whose others are figures; no cell can steer a terminal."""
    table = Table(*(escape_text(cell, LONGEST_CELL) for cell in header), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(escape_text(cell, LONGEST_CELL) for cell in row))
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=WIDE)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
