"""`indistill demo`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import OverwriteOption, SeedOption
from indistill.talk import say


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")] = Path("demo-out"),
    seed: SeedOption = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """Walk the whole way on scikit-learn's digits, in two or three minutes, and write a page to look at."""
    from indistill.cli.output import print_table
    from indistill.cli.stdout import emit
    from indistill.cli.walk import HEADER, prepare_output, walk_digits

    prepare_output(out, overwrite=overwrite)
    try:
        result = walk_digits(out, seed, say)
    except KeyboardInterrupt as error:
        error.__notes__ = ["the same command with --overwrite begins again"]  # of a training, which alone could go on
        raise
    print_table(HEADER, result.rows)
    for warning in result.warnings:
        say(f"warning: {warning}")
    emit(str(result.page))
