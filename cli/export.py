"""`indistill export`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, JsonOption, OverwriteOption, SetOption

GATE_IMAGES = 32


def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, or any model spec (then with --data and --out).")
    ],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file, the only format so far.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="RUN/student.onnx")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Real images to verify the file with.", show_default="the run's own"),
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Weights of a model spec.")] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Preprocessing of a model spec.", show_default="the run's own")
    ] = None,
    settings: SetOption = None,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    json: JsonOption = False,
) -> None:
    """Export a student as one ONNX file that is verified against PyTorch, or not written."""
    from indistill.cli.inputs import load_described, read_sample, warn_of_random_weights
    from indistill.cli.output import print_export
    from indistill.errors import InputError
    from indistill.export.onnx import export_onnx

    if not onnx:
        raise InputError("say which format to export to: --onnx")
    described = load_described(model, weights=weights, recipe=recipe, items=settings)
    target = out or described.default_file
    if target is None:
        raise InputError(f"'{model}' is no run folder: name the file to write with --out FILE.onnx")
    pixels = read_sample(data or described.data, described.preprocessing, GATE_IMAGES, root=data_root)
    warn_of_random_weights(described.network, "model", "--weights")
    artefact = export_onnx(
        described.network,
        described.preprocessing,
        pixels.images,
        target,
        provenance=described.provenance,
        overwrite=overwrite,
    )
    print_export(target, artefact, as_json=json)
