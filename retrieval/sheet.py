"""The contact sheet: queries and their hits, or groups of duplicates, as one HTML page that needs no other file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from indistill.errors import DataError
from indistill.images import ImageSource, decode_image
from indistill.retrieval.ranking import Hit
from indistill.retrieval.search import Asked, Query, describe_query

THUMBNAIL = 128
STYLE = """
.sheet-row { display: flex; flex-wrap: wrap; gap: .6rem; padding: .8rem 0; border-bottom: 1px solid var(--line); }
.sheet-row figure { margin: 0; width: 8.4rem; padding: .2rem; background: none; }
.sheet-row figure.query { outline: 2px solid #36c; border-radius: .3rem; }
.sheet-row figure.right img { outline: 3px solid #2a2; } .sheet-row figure.wrong img { outline: 3px solid #c33; }
.sheet-row img { width: 8rem; height: 8rem; object-fit: contain; background: #8882; image-rendering: auto; }
.sheet-row .missing { width: 8rem; height: 8rem; display: grid; place-items: center; background: #8882; }
.sheet-row figcaption { font-size: .8rem; overflow-wrap: anywhere; }
"""
ROWS = """
{% for row in rows %}<div class="sheet-row">
{% for cell in row %}<figure class="{{ cell.kind }}">
{% if cell.image %}<img src="{{ cell.image }}" alt="{{ cell.alt }}">
{% else %}<div class="missing">no image</div>{% endif %}
<figcaption>{{ cell.caption }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}"""


@dataclass(frozen=True)
class SheetRow:
    """A query with its hits; where the query's label is known, hits are marked as right or wrong.

    Attributes:
        query: as it was given to `search_images`; one given by its id alone is named but not shown.
        hits: best first.
        label: of the query.
        role: what the query is called.
    """

    query: Asked
    hits: Sequence[Hit]
    label: str | None = None
    role: str = "query"


def render_rows(rows: Sequence[SheetRow], root: Path) -> Markup:
    """Returns the rows as HTML, to stand in a page with `STYLE`.

    Args:
        rows: the queries.
        root: the gallery's folder; an image that is not there any more is shown as missing.
    """
    cells = []
    for row in rows:
        parts = row.query if isinstance(row.query, tuple) else (row.query,)
        queries = [_make_query(part, row.role) for part in parts]
        hits = [
            {
                "kind": _judge(row.label, hit.label),
                "image": _encode(root / hit.path),
                "alt": hit.path,
                "caption": f"{hit.rank}. {hit.score:.3f} {hit.path}",
            }
            for hit in row.hits
        ]
        cells.append([*queries, *hits])
    return Markup(Environment(autoescape=True).from_string(ROWS).render(rows=cells))  # escaped by the template


def render_sheet(rows: Sequence[SheetRow], root: Path, title: str = "Search") -> str:
    """Returns the whole page; see `render_rows`."""
    template = resources.files("indistill.retrieval").joinpath("sheet.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, style=Markup(STYLE), rows=render_rows(rows, root))


def count_pictures(page: str) -> tuple[int, int]:
    """Returns how many images a page of `render_sheet` has, and how many of them it does not show."""
    return page.count("<figure "), page.count('<div class="missing">')  # in what is escaped there are no such signs


def _make_query(query: Query, role: str) -> dict[str, str]:
    name = str(Path(*Path(query).parts[-2:])) if isinstance(query, str | Path) else describe_query(query)
    image = "" if isinstance(query, int) else _encode(query)
    return {"kind": "query", "image": image, "alt": name, "caption": f"{role} {name}"}


def _judge(wanted: str | None, found: str | None) -> str:
    if wanted is None:
        return "hit"
    return "right" if wanted == found else "wrong"


def _encode(source: ImageSource) -> str:
    try:
        image = decode_image(source)
    except DataError:
        return ""
    if max(image.size) > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
