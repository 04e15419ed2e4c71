"""`indistill index build` and `indistill index info`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import DataRootOption, DownloadOption, JsonOption, OverwriteOption

app = typer.Typer(help="Build an index over a gallery of images, and look at it.", no_args_is_help=True)


@app.command()
def build(
    images: Annotated[str, typer.Argument(help="The gallery: a folder, or another data spec (see --data of train).")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The .onnx file that 'indistill export' wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write.")],
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    json: JsonOption = False,
) -> None:
    """Embed a gallery of images and write an exact index of it, complete or not at all."""
    from indistill.cli.inputs import report_skipped
    from indistill.cli.output import print_index
    from indistill.data.sets import open_images
    from indistill.export.session import EmbeddingSession
    from indistill.progress import show_progress
    from indistill.retrieval.build import build_index, check_index_output

    check_index_output(out, overwrite=overwrite)
    session = EmbeddingSession(model)
    gallery = open_images(images, root=data_root, download=download)
    with show_progress("embedding", len(gallery.names)) as advance:
        manifest, skipped = build_index(gallery, session, out, overwrite=overwrite, on_progress=advance)
    report_skipped(skipped)
    print_index(out, manifest, as_json=json)


@app.command()
def info(
    index: Annotated[Path, typer.Argument(help="The index folder.")],
    json: JsonOption = False,
) -> None:
    """Print what an index is: images, dimension, type, model."""
    from indistill.cli.output import print_index
    from indistill.retrieval.index import read_manifest

    print_index(index, read_manifest(index), as_json=json)
