"""`indistill dedupe`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from indistill.cli.options import IndexArgument, JsonOption, OverwriteOption
from indistill.talk import say


def dedupe(
    index: IndexArgument,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="The least cosine of an image to the first of its group.")
    ] = 0.95,
    form: Annotated[
        Literal["table", "json", "jsonl", "csv", "html"] | None,
        typer.Option("--format", help="jsonl: a group on each line.", show_default="table"),
    ] = None,
    json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page of the groups' images.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """List groups of near-duplicates in an index, and of files that are equal; nothing is deleted.

    The column 'cosine' (in JSON and CSV 'score') is that to the first image of the group, the one with
    the smallest id. To keep the first of each group is to keep no near-duplicates.
    """
    from indistill.cli.duplicates import print_groups, render_groups
    from indistill.cli.hits import check_page, choose_format, write_page
    from indistill.progress import show_progress
    from indistill.retrieval.duplicates import find_duplicates
    from indistill.retrieval.opening import locate_index, open_index

    chosen = choose_format(form, as_json=json)
    if html is not None:
        check_page(html, overwrite=overwrite)
    with open_index(locate_index(index)) as opened:
        total, root = opened.manifest.items, opened.root
        with show_progress("comparing", total) as advance:
            groups = find_duplicates(opened, threshold, advance)
    images = sum(map(len, groups))
    noun = "group" if len(groups) == 1 else "groups"
    say(
        f"{len(groups):,} {noun} of near-duplicates: {images:,} of {total:,} images, each with a cosine of "
        f"{threshold:g} (--threshold) or more to the first of its group"
    )
    if html is not None:
        write_page(render_groups(groups, root), html)
    if html is None or chosen is not None:
        print_groups(groups, root, chosen or "table")
