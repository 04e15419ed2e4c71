"""What the commands of `indistill index` print."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from indistill.cli.inputs import report_skipped
from indistill.cli.output import print_json
from indistill.cli.stdout import emit
from indistill.errors import IndexFolderError
from indistill.retrieval.opening import Location, count_outside
from indistill.retrieval.store.generations import NO_SOURCE, PENDING, Manifest
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.retrieval.milvus.location import MilvusLocation
    from indistill.retrieval.milvus.push import Pushed
    from indistill.retrieval.store.edit import Changes
    from indistill.retrieval.store.upkeep import Verification


def report_kept(folder: Path, model_sha256: str) -> None:
    """Says on standard error that a build which was cut off goes on."""
    from indistill.retrieval.store.journal import count_kept  # which brings ONNX Runtime

    if kept := count_kept(folder / PENDING, model_sha256):
        say(f"going on: {kept:,} embeddings of a command that was cut off are kept")


def print_index(folder: Location, manifest: Manifest, *, as_json: bool) -> None:
    """Prints what an index is."""
    if as_json:
        print_json(asdict(manifest))
        return
    parameters = "".join(f", {name} {value}" for name, value in manifest.parameters.items())
    skipped = f", {manifest.skipped} skipped" if isinstance(folder, Path) else ""
    emit(
        f"{folder}: {manifest.items:,} images, {manifest.dimension} dimensions, {manifest.factory}{parameters}, "
        f"generation {manifest.generation}{skipped}"
    )
    source = {"": "", manifest.root: "", NO_SOURCE: ", paths from standard input or several lists"}
    emit(f"gallery {manifest.root}{source.get(manifest.source, f', as {manifest.source} names it')}")
    emit(f"model   SHA-256 {manifest.model_sha256}")


def print_outside(location: Location) -> None:
    """Prints how many images of an index lie outside its gallery, if any do."""
    if count := count_outside(location):
        noun = "image lies" if count == 1 else "images lie"
        emit(f"outside {count:,} {noun} outside the gallery: 'index sync' leaves them alone")


def print_pushed(target: "MilvusLocation", pushed: "Pushed", *, as_json: bool) -> None:
    """Prints what a push sent, and what the collection is now."""
    if as_json:
        print_json({"sent": pushed.sent, "present": pushed.present} | asdict(pushed.manifest))
        return
    emit(f"{target}: {pushed.sent:,} images sent, {pushed.present:,} were there")
    print_index(target, pushed.manifest, as_json=False)


def print_changes(folder: Location, changes: "Changes", *, as_json: bool) -> None:
    """Prints what a change did to an index."""
    report_skipped(changes.skipped)
    counts = {
        name: getattr(changes, name) for name in ("added", "changed", "moved", "relabelled", "removed", "unchanged")
    }
    if as_json:
        skipped = [asdict(image) for image in changes.skipped]
        print_json(
            counts | {"skipped": skipped, "items": changes.manifest.items, "generation": changes.manifest.generation}
        )
        return
    done = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    emit(f"{folder}: {done}; {changes.manifest.items:,} images, generation {changes.manifest.generation}")


def print_verification(folder: Location, found: "Verification", *, as_json: bool) -> None:
    """Prints what is wrong with an index.

    Raises:
        IndexFolderError: something is.
    """
    if as_json:
        print_json(asdict(found))
    elif not found.problems:
        emit(f"{folder}: whole, {found.files} files and {found.items:,} images")
    if found.problems:
        for problem in found.problems[:-1]:
            say(f"{folder}: {problem}")
        raise IndexFolderError(
            f"the index {folder} is damaged: {found.problems[-1]}; 'indistill index rebuild' mends an index.faiss, "
            "'indistill index build --overwrite' the rest"
        )
