"""What `search` prints; apart from output.py, so that a search starts without the tables' library."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from indistill.cli.options import HitFormat
from indistill.cli.stdout import emit
from indistill.data.urls import join_url
from indistill.errors import ExistsError, InputError, describe_os_error, escape_text
from indistill.retrieval.ranking import Hit
from indistill.retrieval.search import Asked, SearchOptions, SearchResults, describe_query
from indistill.talk import say

LONGEST_PATH = 4096
# What spreadsheets take for a formula, the wide forms too; and the sign that marks such a text, so that all can be read
# back.
MARKED_SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠", "\t", "\r", "\n", "'")


def choose_format(wanted: HitFormat | None, *, as_json: bool) -> HitFormat | None:
    """Returns the format of `--format`, for which `--json` is short; None where neither is given."""
    if as_json and wanted not in (None, "json"):
        raise InputError(f"--json and --format {wanted}: choose one")
    return "json" if as_json else wanted


def print_hits(results: SearchResults, form: HitFormat) -> None:
    """Prints the hits. In a table names are made harmless for a terminal; elsewhere they are data, and as they are."""
    if form == "table":
        emit("\n".join(_make_lines(results)))
    elif form == "json":
        emit(json.dumps({"queries": _describe(results)}, ensure_ascii=False, indent=2))
    elif form == "jsonl":
        emit("\n".join(json.dumps(answer, ensure_ascii=False) for answer in _describe(results)))
    elif form == "csv":
        header = ["query", "rank", "id", "path", "label", "score"]
        emit_csv(header, ([describe_query(query), *_list_values(hit)] for query, hit in _pair(results)))
    elif form == "html":
        emit_page(_render(results))
    else:
        _emit_paths([join_url(results.root, hit.path) for _, hit in _pair(results)], null=form == "paths0")


def report_empty(results: SearchResults, options: SearchOptions) -> None:
    """Says on standard error which queries have no hits."""
    empty = [query for query, hits in results.queries if not hits]
    if empty and options.where is not None and options.threshold is None and not options.exclude_self:
        say("no image of the index meets the condition of --where")
        return
    for query in empty:
        say(f"{escape_text(describe_query(query), LONGEST_PATH)}: no hits")


def write_sheet(results: SearchResults, path: Path, *, overwrite: bool) -> None:
    """Writes the contact sheet; see `write_page`."""
    check_page(path, overwrite=overwrite)
    write_page(_render(results), path)


def check_page(path: Path, *, overwrite: bool) -> None:
    """Raises ExistsError if a page would be overwritten without being told to."""
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists; choose another --html, or replace it with --overwrite")


def write_page(page: str, path: Path) -> None:
    """Writes a page of `--html`, and says what it lacks. Raises InputError if that cannot be."""
    from indistill.retrieval.sheet import count_pictures

    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {describe_os_error(error)}") from error
    say(f"wrote {path}")
    pictures, missing = count_pictures(page)
    if missing:
        say(
            f"warning: {missing:,} of the {pictures:,} images of the page are not shown: their files are not there, or "
            "cannot be read"
        )


def emit_page(page: str) -> None:
    """Prints a page in UTF-8, as it says of itself."""
    emit(page.encode("utf-8", "backslashreplace"), end="")


def emit_csv(header: list[str], rows: Iterable[list[str | int | float | None]]) -> None:
    """Prints CSV after RFC 4180, in UTF-8. A text that a spreadsheet would take for a formula gets a ' before it.

    So does one that begins with a ': without the first one, each is what it was.
    """
    import csv
    import io

    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(header)
    for row in rows:
        writer.writerow(f"'{cell}" if isinstance(cell, str) and cell.startswith(MARKED_SIGNS) else cell for cell in row)
    emit(stream.getvalue().encode("utf-8", "backslashreplace"), end="")


def _emit_paths(paths: list[str], *, null: bool) -> None:
    """Prints paths as the bytes that they are, each ended by a newline or a NUL."""
    broken = sum("\n" in path for path in paths)
    if broken and not null:
        say(f"warning: {broken} of the paths hold a newline: --format paths0 ends each by NUL instead")
    emit(b"".join(os.fsencode(path) + (b"\0" if null else b"\n") for path in paths), end="")


def _pair(results: SearchResults) -> Iterable[tuple[Asked, Hit]]:
    return ((query, hit) for query, hits in results.queries for hit in hits)


def _list_values(hit: Hit) -> list[str | int | float | None]:
    return [hit.rank, hit.id, hit.path, hit.label, hit.score]


def _make_lines(results: SearchResults) -> list[str]:
    lines = [f"{'rank':>5}  cosine  {'id':>8}  label  path"]
    for query, hits in results.queries:
        lines.append(escape_text(describe_query(query), LONGEST_PATH))
        for hit in hits:
            label, path = escape_text(hit.label or "-"), escape_text(hit.path, LONGEST_PATH)
            lines.append(f"{hit.rank:>5}  {hit.score:.4f}  {hit.id:>8}  {label}  {path}")
    return lines


def _describe(results: SearchResults) -> list[dict[str, object]]:
    names = ("rank", "id", "path", "label", "score")
    return [
        {
            "query": _name_query(query),
            "hits": [dict(zip(names, _list_values(hit), strict=True)) for hit in hits],
        }
        for query, hits in results.queries
    ]


def _name_query(query: Asked) -> object:
    """Returns a path as text, an id as a number, and queries that were combined as a list."""
    if isinstance(query, tuple):
        return [_name_query(part) for part in query]
    return query if isinstance(query, int) else describe_query(query)


def _render(results: SearchResults) -> str:
    from indistill.retrieval.sheet import SheetRow, render_sheet

    def locate(query: Asked) -> Asked:
        if isinstance(query, tuple):
            return tuple(results.root / results.paths[part] if isinstance(part, int) else part for part in query)
        return results.root / results.paths[query] if isinstance(query, int) else query

    return render_sheet([SheetRow(locate(query), hits) for query, hits in results.queries], results.root)
