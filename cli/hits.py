"""What `search` prints; apart from output.py, so that a search starts without the tables' library."""

import json
from pathlib import Path

import typer

from indistill.cli.stdout import emit
from indistill.errors import ExistsError, InputError
from indistill.retrieval.search import SearchResults


def print_hits(results: SearchResults, *, as_json: bool) -> None:
    """Prints the hits as JSON, or a line for each: rank, score, id, label and path."""
    if as_json:
        queries = [
            {
                "query": str(query),
                "hits": [
                    {"rank": hit.rank, "id": hit.id, "path": hit.path, "label": hit.label, "score": hit.score}
                    for hit in hits
                ],
            }
            for query, hits in results.queries
        ]
        emit(json.dumps({"queries": queries}, ensure_ascii=False, indent=2))
        return
    for query, hits in results.queries:
        emit(f"{query}")
        for hit in hits:
            emit(f"{hit.rank:>5}  {hit.score:.4f}  {hit.id:>8}  {hit.label or '-'}  {hit.path}")


def write_sheet(results: SearchResults, path: Path, *, overwrite: bool) -> None:
    """Writes the contact sheet.

    Raises:
        ExistsError: the file exists.
        InputError: it cannot be written.
    """
    from indistill.retrieval.sheet import SheetRow, render_sheet

    if path.exists() and not overwrite:
        raise ExistsError(f"{path} exists; choose another --html, or replace it with --overwrite")
    page = render_sheet([SheetRow(query, hits) for query, hits in results.queries], results.root)
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}", err=True)
