"""`indistill search`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import JsonOption, OverwriteOption


def search(
    index: Annotated[Path, typer.Argument(help="The index folder.")],
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY...", help="Images to look for.")],
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many hits for each query.")] = 10,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The model, if not the index's own copy; refused if another.")
    ] = None,
    json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a contact sheet.")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the images of an index that are most like the queries."""
    from indistill.cli.hits import print_hits, write_sheet
    from indistill.retrieval.search import search_images

    results = search_images(index, queries, k=k, model=model)
    if html is not None:
        write_sheet(results, html, overwrite=overwrite)
    if html is None or json:
        print_hits(results, as_json=json)
