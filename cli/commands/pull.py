"""`indistill pull`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import JsonOption, OverwriteOption
from indistill.talk import say


def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="On the Hub: OWNER/NAME.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    revision: Annotated[str, typer.Option("--revision", help="A branch, tag or commit.", show_default="main")] = "",
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model folder from the Hugging Face Hub, and look at each file before it is there."""
    from indistill.cli.folders import print_folder
    from indistill.export.hub import check_repository, open_hub, pull_folder

    api = open_hub()
    check_repository(repo_id)
    print_folder(pull_folder(api, repo_id, out, revision=revision, overwrite=overwrite), as_json=json)
    if not json:
        say(f"Next: indistill index build IMAGES --model {out / 'model.onnx'} --out INDEX")
