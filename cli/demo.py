"""`indistill demo`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import OverwriteOption, SeedOption


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("demo-out"),
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Walk the whole way on scikit-learn's digits, in about two minutes, and write a page to look at."""
    from indistill.cli.output import print_table
    from indistill.cli.walk import HEADER, clear_output, walk_digits
    from indistill.runs import check_output_folder

    check_output_folder(out, overwrite=overwrite, marker="report.html")
    clear_output(out)
    result = walk_digits(out, seed, lambda line: typer.echo(line, err=True))
    print_table(HEADER, result.rows)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(str(result.page))
