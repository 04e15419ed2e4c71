"""`indistill search`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import HitFormat, IndexArgument, JsonOption, OverwriteOption
from indistill.cli.standard_input import NullInputOption, expand_paths


def search(
    context: typer.Context,
    index: IndexArgument,
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...", help="Images to look for; - stands for paths from standard input.", show_default=False
        ),
    ] = None,
    ids: Annotated[
        list[int] | None,
        typer.Option("--id", min=0, max=2**63 - 1, help="Look for a catalogued image by its id; repeatable."),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many hits for each query.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="Search only images that meet it, as \"label = 'dog' and size > 10000\" or \"path like '%/dog%'\" (% "
            "stands for any text, _ for one character): comparisons, like, in, is null, and, or, not, ( ) over id, "
            "path, label, size, sha256 and modified.",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=-1, max=1, help="The least cosine of a hit.")
    ] = None,
    combine: Annotated[
        bool, typer.Option("--combine", help="Make one query of all: the mean of their vectors.")
    ] = False,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave the query out: by --id its id, else all files of its content.")
    ] = False,
    rerank: Annotated[
        int, typer.Option("--rerank", min=0, metavar="N", help="Order the first N anew by the stored vectors.")
    ] = 0,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The model, if not the index's own copy; refused if another.")
    ] = None,
    form: Annotated[
        HitFormat | None,
        typer.Option(
            "--format",
            help="paths: of the files found, one a line; paths0: each ended by NUL; csv: for spreadsheets, a text that "
            "begins with = + - @ or ' gets a ' before it.",
            show_default="table",
        ),
    ] = None,
    json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a contact sheet.")] = None,
    null_input: NullInputOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Find the images of an index that are most like the queries."""
    from indistill.cli.hits import check_page, choose_format, print_hits, report_empty, write_sheet
    from indistill.retrieval.opening import locate_index
    from indistill.retrieval.search import SearchOptions, search_images

    if not queries and not ids and not null_input:
        context.fail("Missing argument 'QUERY...': name images, - for paths from standard input, or --id")
    chosen = choose_format(form, as_json=json)
    if html is not None:
        check_page(html, overwrite=overwrite)
    condition = None
    if where is not None:
        from indistill.retrieval.where import parse_where

        condition = parse_where(where)
    options = SearchOptions(condition, threshold, rerank, combine, exclude_self)
    asked: list[Path | int] = [*map(Path, expand_paths(queries or [], null=null_input)), *(ids or [])]
    results = search_images(locate_index(index), asked, k=k, model=model, options=options)
    report_empty(results, options)
    if html is not None:
        write_sheet(results, html, overwrite=overwrite)
    if html is None or chosen is not None:
        print_hits(results, chosen or "table")
