"""`indistill pack`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import JsonOption, OverwriteOption
from indistill.talk import say


def pack(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Files of 'indistill export': the float32 one, and others of the same student."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="As the Hub calls it: apache-2.0, mit, other.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Title of the model card.", show_default="the network's")] = "",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Put the files of an export into a folder with a model card, as the Hugging Face Hub and loaders take it."""
    from indistill.cli.folders import print_folder
    from indistill.export.folder import pack_folder

    folder = pack_folder(files, out, title=name, license_id=license_id, overwrite=overwrite)
    print_folder(folder, as_json=json)
    if not license_id:
        say("warning: the card says that no licence was given; name one with --license")
    if not json:
        say(f"Next: indistill push {out} OWNER/NAME")
