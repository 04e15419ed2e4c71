"""What `pack`, `push` and `pull` print of a model folder."""

from typing import TYPE_CHECKING

from indistill.cli.output import print_json
from indistill.cli.stdout import emit
from indistill.errors import escape_text
from indistill.export.folder import FOLDER_FILES, ModelFolder
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.export.hub import PushOptions


def print_folder(folder: ModelFolder, *, as_json: bool) -> None:
    """Prints the folder and what is in it."""
    if as_json:
        described = {file.name: {"precision": file.artefact.precision, "sha256": file.sha256} for file in folder.files}
        files = [
            {"file": name, "size_bytes": size} | described.get(name, {}) for name, size in folder.list_sizes().items()
        ]
        print_json({"folder": str(folder.path), "files": files})
        return
    emit(str(folder.path))
    _print_sizes(folder)


def print_plan(folder: ModelFolder, repo_id: str, endpoint: str, options: "PushOptions") -> None:
    """Prints what would be sent where."""
    where = f", branch {escape_text(options.revision)}" if options.revision else ""
    emit(f"would send to {repo_id}{where}, {'private' if options.private else 'public if it is new'}, at {endpoint}:")
    _print_sizes(folder)


def warn_of_others(folder: ModelFolder) -> None:
    """Prints which files of a folder are not ours, and so are not sent."""
    others = sorted(path.name for path in folder.path.iterdir() if path.name not in FOLDER_FILES)
    if others:
        say(f"not sent, as they are no part of a model folder: {escape_text(', '.join(others))}")


def _print_sizes(folder: ModelFolder) -> None:
    for name, size in folder.list_sizes().items():
        emit(f"{name:<25}{size:>14,} bytes")
