"""The page of an evaluation: tables and queries with their hits, as one HTML file that needs no other."""

from collections.abc import Mapping, Sequence
from importlib import resources

from jinja2 import Environment
from markupsafe import Markup

from indistill.retrieval.sheet import STYLE


def render_evaluation(
    title: str,
    note: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    pictures: Mapping[str, Sequence[tuple[str, Markup]]],
) -> str:
    """Returns the page; every text is escaped.

    Args:
        title: of the page.
        note: a line below it.
        tables: header and rows by heading.
        pictures: by heading, rows of `render_rows` with a line of text for each.
    """
    template = resources.files("indistill.retrieval.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, note=note, tables=tables, pictures=pictures, style=Markup(STYLE))
