"""`indistill doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import JsonOption


def doctor(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="Say what this file or folder is instead: a run, an .onnx file, a model folder, an index, ..."
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Embed, index and search a few made images too; takes seconds.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Say what works here and what is missing; or what a file or folder is, its format, and whether it is whole.

    Exit code 1 if something that is needed is missing or broken, or the path is nothing that is known.
    """
    from indistill.cli.doctor.report import inspect_all, inspect_path, print_findings

    print_findings(inspect_all(test=test) if path is None else inspect_path(path), as_json=json)
