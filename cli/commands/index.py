"""`indistill index`: build an index, change it, look after it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.cli.cluster import AddressOption, EmbeddingsOption, EngineOption, ShardsOption
from indistill.cli.index_type import FactoryOption, LatencyOption, MemoryOption, RecallOption, make_chooser
from indistill.cli.options import (
    CollectionModelOption,
    DataRootOption,
    DownloadOption,
    IndexArgument,
    JsonOption,
    OverwriteOption,
)
from indistill.cli.standard_input import NullInputOption, expand_paths, open_listed
from indistill.talk import say

app = typer.Typer(help="Build an index over a gallery of images, change it, and look after it.", no_args_is_help=True)

WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Threads that decode images; processes, on Ray.", show_default="one a core"),
]


def _parse_folder(text: str) -> Path:
    from indistill.retrieval.opening import require_folder

    return require_folder(text)


FolderArgument = Annotated[Path, typer.Argument(help="The index folder.", parser=_parse_folder, metavar="INDEX")]


@app.command()
def build(
    images: Annotated[
        str,
        typer.Argument(
            help="The gallery: a folder, another data spec (see --data of train), or - for paths from standard input, "
            "which the index then has relative to the deepest folder that holds them all."
        ),
    ],
    model: Annotated[Path, typer.Option("--model", "-m", help="The .onnx file that 'indistill export' wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write.")],
    recall: RecallOption = None,
    max_memory: MemoryOption = None,
    max_latency: LatencyOption = None,
    factory: FactoryOption = None,
    workers: WorkersOption = None,
    null_input: NullInputOption = False,
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
    from indistill.cli.index_output import print_index, report_kept
    from indistill.cli.inputs import report_skipped
    from indistill.data.specs import locate_data, open_images
    from indistill.export.session import EmbeddingSession
    from indistill.progress import show_progress
    from indistill.retrieval.store.build import BuildOptions

    build_index = choose_builder(out, engine, address, shards, embeddings, overwrite=overwrite)
    session = EmbeddingSession(model)
    choose = make_chooser(recall, max_memory, max_latency, factory, session.artefact.embedding_dim)
    gallery = open_listed(images, null=null_input) or open_images(images, root=data_root, download=download)
    report_kept(out, session.sha256)
    with show_progress("embedding", len(gallery.names)) as advance:
        source = images if images == "-" else locate_data(images)
        limited = max_memory is not None or max_latency is not None
        options = BuildOptions(choose, workers, overwrite, source, limited)
        manifest, skipped = build_index(gallery, session, out, options, advance)
    report_skipped(skipped)
    print_index(out, manifest, as_json=json)
    if not json:
        say(f"Next: indistill search {out} IMAGE")


@app.command()
def add(
    context: typer.Context,
    index: IndexArgument,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Images, folders or other data specs; - stands for paths from standard input.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help="Of all these images, in place of their own; 'sync' gives those that it follows their own again.",
        ),
    ] = None,
    workers: WorkersOption = None,
    null_input: NullInputOption = False,
    model: CollectionModelOption = None,
    json: JsonOption = False,
) -> None:
    """Add images to an index; those that it has are embedded again only if they have changed."""
    from functools import partial

    from indistill.cli.index_output import print_changes
    from indistill.progress import show_progress
    from indistill.retrieval.opening import introduce_model, locate_index
    from indistill.retrieval.store.changes import add_images

    if not images and not null_input:
        context.fail("Missing argument 'PATH...': name images, or - for paths from standard input")
    specs = expand_paths(images or [], null=null_input)
    location = locate_index(index)
    introduce_model(location, model)
    changes = add_images(location, specs, label=label, show=partial(show_progress, "embedding"), workers=workers)
    print_changes(location, changes, as_json=json)


@app.command()
def sync(
    index: IndexArgument,
    images: Annotated[
        str | None,
        typer.Argument(
            metavar="IMAGES",
            help="The folder, manifest or tar shards to follow, or - for paths from standard input.",
            show_default="what the index was built from",
        ),
    ] = None,
    moved: Annotated[
        bool,
        typer.Option(
            "--moved", help="IMAGES is the gallery, which lies there now as a whole: ids stay, nothing is embedded."
        ),
    ] = False,
    workers: WorkersOption = None,
    null_input: NullInputOption = False,
    model: CollectionModelOption = None,
    json: JsonOption = False,
) -> None:
    """Make an index follow a folder, or another source: new, changed, moved, relabelled and gone images.

    Labels are followed too: one of 'add --label' goes, unless the image lies outside what is followed.
    A gallery that was renamed, or is mounted elsewhere, is named with --moved.
    """
    from functools import partial

    from indistill.cli.index_output import print_changes
    from indistill.progress import show_progress
    from indistill.retrieval.opening import introduce_model, locate_index
    from indistill.retrieval.store.changes import sync_folder

    followed = open_listed(images, null=null_input) or images
    location = locate_index(index)
    introduce_model(location, model)
    show = partial(show_progress, "embedding")
    changes = sync_folder(location, followed, moved=moved, show=show, workers=workers)
    print_changes(location, changes, as_json=json)
    if moved:
        say(f"the gallery is {changes.manifest.root} now")


@app.command()
def remove(
    index: IndexArgument,
    paths: Annotated[
        list[str] | None, typer.Option("--path", help="An image as the index has it, or a folder of them; repeatable.")
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="An id; repeatable.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Images whose files are not there any more.")] = False,
    where: Annotated[
        str | None, typer.Option("--where", help="A condition as of 'search': \"label = 'dog' or path like 'old/%'\".")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Remove images from an index; their files stay."""
    from indistill.cli.index_output import print_changes
    from indistill.retrieval.opening import locate_index
    from indistill.retrieval.store.changes import remove_items
    from indistill.retrieval.store.selection import Selection

    location = locate_index(index)
    selection = Selection(tuple(paths or ()), tuple(ids or ()), where, missing=missing)
    print_changes(location, remove_items(location, selection), as_json=json)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def delete() -> None:
    """Say which command is meant."""
    from indistill.errors import InputError

    raise InputError(
        "there is no 'index delete': 'index remove' takes images out of an index; to be rid of all of it, delete its "
        "folder"
    )


@app.command()
def info(index: IndexArgument, json: JsonOption = False) -> None:
    """Print what an index is: images, dimension, type, model."""
    from indistill.cli.index_output import print_index, print_outside
    from indistill.retrieval.opening import describe_index, locate_index

    location = locate_index(index)
    print_index(location, describe_index(location), as_json=json)
    if not json:
        print_outside(location)


@app.command()
def push(
    index: IndexArgument,
    to: Annotated[
        str, typer.Option("--to", metavar="URI", help="Milvus: http://HOST:19530, or FILE.db of Milvus Lite.")
    ],
    collection: Annotated[str, typer.Option("--collection", metavar="NAME", help="The collection to write.")],
    kind: Annotated[
        Literal["FLAT", "HNSW", "IVF_FLAT"] | None,
        typer.Option("--type", help="Of Milvus's index: FLAT searches exactly.", show_default="FLAT"),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Send an index to a collection of Milvus; what is there already is not sent again. See docs/milvus.md.

    A push that was cut off goes on when the command is given again. --overwrite drops a collection of another model,
    gallery or type first.
    """
    from indistill.cli.index_output import print_pushed
    from indistill.progress import show_progress
    from indistill.retrieval.milvus.location import name_collection
    from indistill.retrieval.milvus.push import push_index
    from indistill.retrieval.opening import locate_index, open_index

    target = name_collection(to, collection)
    with open_index(locate_index(index)) as source, show_progress("sending", source.manifest.items) as advance:
        pushed = push_index(source, target, kind, overwrite=overwrite, on_progress=advance)
    print_pushed(target, pushed, as_json=json)


@app.command()
def verify(index: FolderArgument, json: JsonOption = False) -> None:
    """Read every byte of an index and compare it with what was written; exit code 2 if anything differs."""
    from indistill.cli.index_output import print_verification
    from indistill.progress import show_progress
    from indistill.retrieval.opening import describe_index, verify_any

    with show_progress("reading", len(describe_index(index).files), "files") as advance:
        found = verify_any(index, advance)
    print_verification(index, found, as_json=json)


@app.command()
def rebuild(
    index: FolderArgument,
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
    from indistill.retrieval.store.upkeep import rebuild_index

    anew = any(option is not None for option in (recall, max_memory, max_latency, factory))
    choose = make_chooser(recall, max_memory, max_latency, factory) if anew else None
    print_index(index, rebuild_index(index, choose), as_json=json)


@app.command()
def compact(index: FolderArgument, json: JsonOption = False) -> None:
    """Give back the space of removed images and of the generation before; ids stay."""
    from indistill.cli.index_output import print_index
    from indistill.retrieval.store.upkeep import compact_index

    print_index(index, compact_index(index), as_json=json)


@app.command()
def merge(
    indexes: Annotated[
        list[Path], typer.Argument(metavar="INDEX INDEX...", help="Indexes of one model.", parser=_parse_folder)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write.")],
    json: JsonOption = False,
) -> None:
    """Write one index with the images of several; those of the first keep their ids."""
    from indistill.cli.index_output import print_index
    from indistill.errors import InputError
    from indistill.retrieval.store.upkeep import merge_indexes

    if len(indexes) < 2:
        raise InputError("name two indexes at least")
    print_index(out, merge_indexes(indexes, out), as_json=json)
