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

if TYPE_CHECKING:
    from indistill.retrieval.index import Manifest
    from indistill.retrieval.metrics import Evaluation, Metric

WIDE = 10_000


def print_run(folder: Path) -> None:
    """Prints the run folder, and on standard error what may be done with it."""
    emit(str(folder))
    typer.echo(f"Next: indistill export {folder} --onnx", err=True)


def print_index(folder: Path, manifest: "Manifest", *, as_json: bool) -> None:
    """Prints what an index is."""
    if as_json:
        print_json(asdict(manifest))
        return
    emit(
        f"{folder}: {manifest.items:,} images, {manifest.dimension} dimensions, {manifest.factory}, "
        f"generation {manifest.generation}, {manifest.skipped} skipped"
    )
    emit(f"gallery {manifest.root}")
    emit(f"model   SHA-256 {manifest.model_sha256}")


def print_evaluation(evaluations: "dict[Metric, Evaluation]", *, as_json: bool) -> None:
    """Prints the metrics, a column for cosine and one for Euclidean distance."""
    first = next(iter(evaluations.values()))
    if as_json:
        figures: dict[str, object] = {metric: evaluation.metrics for metric, evaluation in evaluations.items()}
        print_json(figures | {"queries": first.queries, "skipped": first.skipped})
        return
    rows = [
        [name, *(f"{100 * evaluation.metrics[name]:.2f}" for evaluation in evaluations.values())]
        for name in first.metrics
    ]
    print_table(["percent", *evaluations], rows)
    typer.echo(f"{first.queries:,} queries; {first.skipped:,} without a match in the gallery were skipped", err=True)


def print_closeness(run: Path, figures: dict[str, Any], *, as_json: bool) -> None:
    """Prints how close the student is to its teacher, and the metrics where there are labels."""
    from indistill.cli.closeness import describe_gallery, describe_images, tabulate_closeness, tabulate_retrieval

    if as_json:
        print_json(figures)
    else:
        print_table(*tabulate_closeness(figures))
        if figures["retrieval"] is not None:
            print_table(*tabulate_retrieval(figures))
            typer.echo(describe_gallery(figures["retrieval"]), err=True)
        typer.echo(describe_images(figures), err=True)
    if figures["skipped"]:
        typer.echo(f"warning: {figures['skipped']} images were skipped", err=True)
    typer.echo(f"wrote {run / 'report.html'}", err=True)


def print_json(data: object) -> None:
    """Prints JSON, text as it is and not escaped."""
    emit(json.dumps(data, ensure_ascii=False, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table whose first column is text and whose others are figures."""
    emit(_format_table(header, rows))


def _format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=WIDE)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
