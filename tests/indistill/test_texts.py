"""What holds of any text at all, drawn by Hypothesis: of escapes, YAML, settings, conditions and CSV."""

import csv
import io
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indistill.cli.hits import emit_csv
from indistill.errors import ConfigError, InputError, escape_line, escape_text
from indistill.files.documents import read_yaml
from indistill.models.specs import parse_model_spec
from indistill.retrieval.where import parse_where
from indistill.runs.config import load_recipe, parse_overrides

TEXTS = st.text(st.characters(codec=None), max_size=60)  # lone surrogates too, as names that are not UTF-8 have them
YAML = st.text("ab:-[]{}&*!|>'\"%@`#,?<= \n\t0123.eE~", max_size=60)
KEYS = st.sampled_from(("data.crop", "data.mean", "loss.name", "loss.temperature", "optimiser.milestones", "targets.x"))


def explain(kind: type[Exception], read: Callable[[], object]) -> str:
    """Returns why something was refused with an error of a kind, or nothing where it was taken."""
    try:
        read()
    except kind as error:
        return str(error)
    return ""


@given(TEXTS)
def test_an_escaped_text_is_one_printable_line_and_stays_as_it_is(text: str) -> None:
    assert escape_text(text).isprintable()
    assert escape_text(escape_text(text), 1000) == escape_text(text)
    assert escape_line(text * 200).isprintable()
    assert len(escape_line(text * 200)) < 50_000


@given(YAML)
def test_any_yaml_is_a_value_or_a_value_error_of_one_line(text: str) -> None:
    assert explain(ValueError, lambda: read_yaml(text)).isprintable()


@settings(max_examples=50, deadline=None)
@given(KEYS, st.one_of(YAML, TEXTS, st.floats().map(str), st.integers().map(str)))
def test_any_setting_is_taken_or_refused_in_one_line(key: str, value: str) -> None:
    assert explain(ConfigError, lambda: load_recipe("digits", parse_overrides([f"{key}={value}"]))).isprintable()


@given(st.one_of(TEXTS, st.text("idpathlabeln= ()'\"<>!,andortk0123456789.", max_size=60)))
def test_any_condition_is_taken_or_refused_in_one_line(text: str) -> None:
    assert explain(InputError, lambda: parse_where(text)).isprintable()


@given(TEXTS)
def test_any_model_spec_is_taken_or_refused_in_one_line(text: str) -> None:
    assert explain(InputError, lambda: parse_model_spec(text.replace("\0", ""))).isprintable()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("", "=", "+", "-", "@", "'", "''", "＝", "\n", "\t", "\r")), TEXTS)))
def test_csv_gives_every_text_back_and_holds_no_formula(cells: list[tuple[str, str]]) -> None:
    texts = [f"{start}{rest}".encode("utf-8", "replace").decode() for start, rest in cells]
    with pytest.MonkeyPatch.context() as patch:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        patch.setattr(sys, "stdout", stream)
        emit_csv(["text", "number"], [[text, -0.5] for text in texts])
        written = stream.buffer.getvalue().decode()  # type: ignore[attr-defined]
    read = list(csv.reader(io.StringIO(written, newline="")))[1:]
    assert [number for _, number in read] == ["-0.5"] * len(texts)
    assert not any(cell[:1] in tuple("=+-@＝＋－＠\n\t\r") and cell for cell, _ in read)
    assert [cell.removeprefix("'") for cell, _ in read] == texts
