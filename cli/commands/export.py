"""`indistill export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.cli.interruption import explain_nothing
from indistill.cli.options import DataRootOption, JsonOption, OverwriteOption, SetOption
from indistill.talk import say


@explain_nothing
def export(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder, or any model spec (then with --data and --out).")
    ],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file, the only format so far.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write; with 'all', the float32 one, beside which the others lie.",
            show_default="RUN/student.onnx, RUN/student_fp16.onnx, RUN/student_int8.onnx",
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "int8", "all"],
        typer.Option("--precision", help="Of the file; int8 and all end with a verdict on what to ship."),
    ] = "fp32",
    takes: Annotated[
        Literal["image", "tensor"],
        typer.Option(
            "--input",
            help="What the file takes: decoded images of any size, or the float tensor that the network does.",
        ),
    ] = "image",
    data: Annotated[
        str | None,
        typer.Option("--data", help="Real images to verify the file with.", show_default="the run's own"),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate", help="Real images, 128 or more, to calibrate int8 with.", show_default="others of --data"
        ),
    ] = None,
    gate_images: Annotated[
        int, typer.Option("--gate-images", min=32, help="How many images the gates look at, at most.")
    ] = 512,
    max_drop: Annotated[
        float,
        typer.Option(
            "--max-drop", min=0, max=1, help="How much map (without labels: recall@10) a file may lose, or is refused."
        ),
    ] = 0.01,
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
    from indistill.cli.commands.bench import count_cores
    from indistill.cli.early import check_sources
    from indistill.cli.interruption import note_on_interruption
    from indistill.errors import IndistillError, InputError
    from indistill.export.artefact import PRECISIONS
    from indistill.progress import show_progress, show_status

    if not onnx:
        raise InputError("say which format to export to: --onnx")
    wanted = PRECISIONS if precision == "all" else (precision,)
    if calibrate is not None and "int8" not in wanted:
        raise InputError("--calibrate is of int8: ask for it with --precision int8 or all")
    check_sources(data, [(model, weights)])
    with show_status("loading PyTorch"):
        from indistill.cli.bench_images import read_timed_images
        from indistill.cli.exporting import judge_files, list_written, name_files, print_exports, write_files
        from indistill.cli.gate import read_gate_images
        from indistill.cli.inputs import load_described, warn_of_random_weights, warn_of_shortfall
        from indistill.export.onnx import Exporter, ExportOptions, require_free

    described = load_described(model, weights=weights, recipe=recipe, items=settings)
    target = out or described.default_file
    if target is None:
        raise InputError(f"'{model}' is no run folder: name the file to write with --out FILE.onnx")
    files = name_files(target, wanted, named=out is not None)
    for kind, file in files.items():
        require_free(file, described.preprocessing, kind, overwrite=overwrite)
    source = data or described.data
    gate = read_gate_images(
        source, calibrate, described.preprocessing, gate_images, int8="int8" in wanted, root=data_root
    )
    warn_of_random_weights(described.network, "model", "--weights")
    warn_of_shortfall(model)
    with show_progress("verifying by PyTorch", len(gate.pixels)) as advance:
        exporter = Exporter(described.network, described.preprocessing, gate.pixels, described.provenance, advance)
    options = ExportOptions("fp32", takes, gate.calibration, gate.quality, max_drop)
    exports = write_files(exporter, files, options, overwrite=overwrite)
    with note_on_interruption(lambda: list_written(exports.files)):
        verdict = None
        if "int8" in files:
            images = read_timed_images(source, "network", root=data_root)
            try:
                verdict = judge_files(exporter, exports, options, images, count_cores())
            except IndistillError as error:  # the files are written: say so all the same
                say(f"no verdict: {error}")
        print_exports(exports, verdict, as_json=json)
