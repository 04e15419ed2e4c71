"""The options of `index build` that spread it over the machines of a Ray cluster."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from indistill.errors import InputError
from indistill.talk import say

if TYPE_CHECKING:
    from indistill.data.sets import ImageSet
    from indistill.export.session import EmbeddingSession
    from indistill.images import SkippedImage
    from indistill.retrieval.store.build import BuildOptions
    from indistill.retrieval.store.generations import Manifest

    Builder: TypeAlias = Callable[
        [ImageSet, EmbeddingSession, Path, BuildOptions, Callable[[int], None]], tuple[Manifest, list[SkippedImage]]
    ]

EngineOption = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="This process, or a Ray cluster; see docs/ray.md.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of the Ray cluster: auto, host:port or ray://host:port.",
        show_default="RAY_ADDRESS, else one on this machine",
    ),
]
ShardsOption = Annotated[
    int | None, typer.Option("--shards", min=1, help="Write a folder of so many indexes, searched together; with Ray.")
]
EmbeddingsOption = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        help="Keep the embeddings there as Parquet files, for other builds; with Ray.",
        show_default="in the index, until it is complete",
    ),
]


def choose_builder(
    out: Path,
    engine: Literal["local", "ray"],
    address: str | None,
    shards: int | None,
    embeddings: Path | None,
    *,
    overwrite: bool,
) -> "Builder":
    """Returns what builds an index in `out`, which is looked at before anything is opened.

    Raises:
        ExistsError: `out` is something else, or may not be overwritten.
        InputError: options of Ray without it, Ray is not installed, or the embeddings would lie in the index.
    """
    from indistill.retrieval.store.build import build_index, check_index_output

    if engine == "local":
        given = {"--address": address, "--shards": shards, "--embeddings": embeddings}
        unused = ", ".join(name for name, value in given.items() if value is not None)
        if unused:
            raise InputError(f"{unused} is of a build on a cluster: add --engine ray, or leave it out")
        check_index_output(out, overwrite=overwrite)
        return build_index

    from indistill.retrieval.cluster.building import Spread, build_on_cluster, check_output
    from indistill.retrieval.cluster.runtime import require_ray

    spread = Spread(address, shards, embeddings)
    check_output(out, spread, overwrite=overwrite)
    require_ray()

    def build(
        gallery: "ImageSet",
        session: "EmbeddingSession",
        out: Path,
        options: "BuildOptions",
        on_progress: Callable[[int], None],
    ) -> "tuple[Manifest, list[SkippedImage]]":
        manifest, skipped, work = build_on_cluster(gallery, session, out, options, spread, on_progress)
        say(f"embedded {work.embedded:,} images on {len(work.nodes)} nodes, {work.known:,} were embedded before")
        return manifest, skipped

    return build
