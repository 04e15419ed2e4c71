"""`indistill info`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import JsonOption


def info(
    file: Annotated[Path, typer.Argument(help="An .onnx file, of 'indistill export' or from elsewhere.")],
    json: JsonOption = False,
) -> None:
    """Print what an ONNX file is and what it says of itself; it is not run."""
    from indistill.cli.output import print_model
    from indistill.export.opening import open_file

    print_model(file, *open_file(file), as_json=json)
