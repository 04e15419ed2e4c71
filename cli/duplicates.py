"""What `dedupe` prints."""

import json
from collections.abc import Sequence
from pathlib import Path

from indistill.cli.hits import LONGEST_PATH, emit_csv, emit_page
from indistill.cli.options import HitFormat
from indistill.cli.stdout import emit
from indistill.errors import escape_text
from indistill.retrieval.duplicates import Duplicate
from indistill.retrieval.ranking import Hit
from indistill.retrieval.sheet import SheetRow, render_sheet
from indistill.talk import say

Groups = Sequence[Sequence[Duplicate]]
NAMES = ("id", "path", "label", "size_bytes", "score", "copy_of")
MAX_GROUPS_SHOWN = 500  # on a page, which holds all its images


def print_groups(groups: Groups, root: Path, form: HitFormat) -> None:
    """Prints the groups, data alone: a table, JSON, a line of JSON for each group, CSV or a page."""
    if form == "json":
        emit(json.dumps({"groups": [_describe(group) for group in groups]}, ensure_ascii=False, indent=2))
    elif form == "jsonl":
        emit("".join(json.dumps(_describe(group), ensure_ascii=False) + "\n" for group in groups), end="")
    elif form == "csv":
        numbered = ((number, image) for number, group in enumerate(groups, start=1) for image in group)
        emit_csv(["group", *NAMES], ([number, *_list_values(image)] for number, image in numbered))
    elif form == "html":
        emit_page(render_groups(groups, root))
    else:
        emit("".join(f"{line}\n" for line in _make_lines(groups)), end="")


def render_groups(groups: Groups, root: Path) -> str:
    """Returns the groups as a page, the first image of each as the one that the others are like."""
    if len(groups) > MAX_GROUPS_SHOWN:
        say(f"the page shows the first {MAX_GROUPS_SHOWN} of {len(groups):,} groups")
    rows = [
        SheetRow(root / group[0].item.path, _make_hits(group[1:]), role=f"{len(group)} images: 1.")
        for group in groups[:MAX_GROUPS_SHOWN]
    ]
    return render_sheet(rows, root, "Near-duplicates")


def _make_hits(images: Sequence[Duplicate]) -> list[Hit]:
    return [
        Hit(rank, image.item.id, image.item.path, image.item.label, image.score)
        for rank, image in enumerate(images, start=2)
    ]


def _make_lines(groups: Groups) -> list[str]:
    lines = [f"{'cosine':>7}  {'id':>8}  label  path"] if groups else []
    for number, group in enumerate(groups, start=1):
        lines.append(f"group {number}: {len(group)} images")
        for image in group:
            item, copy = image.item, "" if image.copy_of is None else f"  (same file as {image.copy_of})"
            label, path = escape_text(item.label or "-"), escape_text(item.path, LONGEST_PATH)
            lines.append(f"{image.score:>7.4f}  {item.id:>8}  {label}  {path}{copy}")
    return lines


def _describe(group: Sequence[Duplicate]) -> dict[str, object]:
    return {"images": [dict(zip(NAMES, _list_values(image), strict=True)) for image in group]}


def _list_values(image: Duplicate) -> list[str | int | float | None]:
    item = image.item
    return [item.id, item.path, item.label, item.size_bytes, image.score, image.copy_of]
