"""`indistill push`."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="A folder of 'indistill pack'.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="On the Hub: OWNER/NAME.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private; refused where it is there and is public.")
    ] = False,
    revision: Annotated[
        str, typer.Option("--revision", help="The branch; made where it is not there.", show_default="main")
    ] = "",
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.", show_default="our version")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, without the network.")] = False,
) -> None:
    """Send a model folder to the Hugging Face Hub; the login is the Hub's own (hf auth login, or HF_TOKEN)."""
    from indistill.cli.folders import print_plan, warn_of_others
    from indistill.cli.stdout import emit
    from indistill.export.folder import read_folder
    from indistill.export.hub import PushOptions, check_card, check_repository, open_hub, push_folder

    api = open_hub()
    check_repository(repo_id)
    packed = read_folder(folder)
    check_card(packed)
    warn_of_others(packed)
    options = PushOptions(private, revision, message)
    if dry_run:
        print_plan(packed, repo_id, api.endpoint, options)
    else:
        emit(push_folder(api, packed, repo_id, options))
