"""`indistill index`: build an index, change it, look after it."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.cluster import AddressOption, EmbeddingsOption, EngineOption, ShardsOption
from indistill.cli.index_type import FactoryOption, LatencyOption, MemoryOption, RecallOption, make_chooser
from indistill.cli.options import DataRootOption, DownloadOption, JsonOption, OverwriteOption

app = typer.Typer(help="Build an index over a gallery of images, change it, and look after it.", no_args_is_help=True)

IndexArgument = Annotated[Path, typer.Argument(help="The index folder.")]


@app.command()
def build(
    images: Annotated[str, typer.Argument(help="The gallery: a folder, or another data spec (see --data of train).")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The .onnx file that 'indistill export' wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write.")],
    recall: RecallOption = None,
    max_memory: MemoryOption = None,
    max_latency: LatencyOption = None,
    factory: FactoryOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Threads that decode, or processes of Ray.", show_default="one a core"),
    ] = None,
    overwrite: OverwriteOption = False,
    data_root: DataRootOption = None,
    download: DownloadOption = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    shards: ShardsOption = None,
    embeddings: EmbeddingsOption = None,
    json: JsonOption = False,
) -> None:
    """Embed a gallery of images and write an index of it, complete or not at all.

    Small galleries are searched exactly; for larger ones the type of index is the one that reaches --recall with the
    least work, measured on images that are held out. A build that was cut off goes on when the command is given again.
    With --engine ray the machines of a cluster do the work; see docs/ray.md.
    """
    from indistill.cli.cluster import choose_builder
    from indistill.cli.index_output import print_index
    from indistill.cli.inputs import report_skipped
    from indistill.data.sets import open_images
    from indistill.export.session import EmbeddingSession
    from indistill.progress import show_progress
    from indistill.retrieval.build import BuildOptions

    build_index = choose_builder(out, engine, address, shards, embeddings, overwrite=overwrite)
    choose = make_chooser(recall, max_memory, max_latency, factory)
    session = EmbeddingSession(model)
    gallery = open_images(images, root=data_root, download=download)
    with show_progress("embedding", len(gallery.names)) as advance:
        options = BuildOptions(choose, workers, overwrite=overwrite)
        manifest, skipped = build_index(gallery, session, out, options, advance)
    report_skipped(skipped)
    print_index(out, manifest, as_json=json)


@app.command()
def add(
    index: IndexArgument,
    images: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, folders, or other data specs.")],
    label: Annotated[str | None, typer.Option("--label", help="Of all these images, in place of their own.")] = None,
    json: JsonOption = False,
) -> None:
    """Add images to an index; those that it has are embedded again only if they have changed."""
    from functools import partial

    from indistill.cli.index_output import print_changes
    from indistill.progress import show_progress
    from indistill.retrieval.changes import add_images

    changes = add_images(index, images, label=label, show=partial(show_progress, "embedding"))
    print_changes(index, changes, as_json=json)


@app.command()
def sync(
    index: IndexArgument,
    folder: Annotated[
        str | None, typer.Argument(metavar="FOLDER", help="The folder to follow.", show_default="the gallery's")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make an index follow a folder: new, changed, moved and gone images."""
    from functools import partial

    from indistill.cli.index_output import print_changes
    from indistill.progress import show_progress
    from indistill.retrieval.changes import sync_folder

    print_changes(index, sync_folder(index, folder, partial(show_progress, "embedding")), as_json=json)


@app.command()
def remove(
    index: IndexArgument,
    paths: Annotated[
        list[str] | None, typer.Option("--path", help="An image as the index has it, or a folder of them; repeatable.")
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="An id; repeatable.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Images whose files are not there any more.")] = False,
    where: Annotated[
        str | None, typer.Option("--where", help="A condition, as \"label = 'dog' and size > 10000\".")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Remove images from an index; their files stay."""
    from indistill.cli.index_output import print_changes
    from indistill.retrieval.changes import Selection, remove_items

    selection = Selection(tuple(paths or ()), tuple(ids or ()), where, missing=missing)
    print_changes(index, remove_items(index, selection), as_json=json)


@app.command()
def info(index: IndexArgument, json: JsonOption = False) -> None:
    """Print what an index is: images, dimension, type, model."""
    from indistill.cli.index_output import print_index
    from indistill.retrieval.opening import describe_index

    print_index(index, describe_index(index), as_json=json)


@app.command()
def verify(index: IndexArgument, json: JsonOption = False) -> None:
    """Read every byte of an index and compare it with what was written; exit code 2 if anything differs."""
    from indistill.cli.index_output import print_verification
    from indistill.progress import show_progress
    from indistill.retrieval.opening import describe_index, verify_any

    with show_progress("reading", len(describe_index(index).files), "files") as advance:
        found = verify_any(index, advance)
    print_verification(index, found, as_json=json)


@app.command()
def rebuild(
    index: IndexArgument,
    recall: RecallOption = None,
    max_memory: MemoryOption = None,
    max_latency: LatencyOption = None,
    factory: FactoryOption = None,
    json: JsonOption = False,
) -> None:
    """Make the FAISS index again from the stored embeddings, also where it is damaged.

    With one of the options its type is chosen anew, which pays after the gallery has grown.
    """
    from indistill.cli.index_output import print_index
    from indistill.retrieval.upkeep import rebuild_index

    anew = any(option is not None for option in (recall, max_memory, max_latency, factory))
    choose = make_chooser(recall, max_memory, max_latency, factory) if anew else None
    print_index(index, rebuild_index(index, choose), as_json=json)


@app.command()
def compact(index: IndexArgument, json: JsonOption = False) -> None:
    """Give back the space of removed images and of the generation before; ids stay."""
    from indistill.cli.index_output import print_index
    from indistill.retrieval.upkeep import compact_index

    print_index(index, compact_index(index), as_json=json)


@app.command()
def merge(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX INDEX...", help="Indexes of one model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write.")],
    json: JsonOption = False,
) -> None:
    """Write one index with the images of several; those of the first keep their ids."""
    from indistill.cli.index_output import print_index
    from indistill.errors import InputError
    from indistill.retrieval.upkeep import merge_indexes

    if len(indexes) < 2:
        raise InputError("name two indexes at least")
    print_index(out, merge_indexes(indexes, out), as_json=json)
