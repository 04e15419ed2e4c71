"""Conditions on images as filter expressions of Milvus. What it cannot express is found by id instead.

Nothing that the user writes comes into an expression but as a number, or as a text in quotes whose quotes and
backslashes are escaped; a text with control characters is left to the other way.
"""

import json
import math
from collections.abc import Sequence

from indistill.retrieval.where import Chain, Comparison, Condition, Negation, Value

ALWAYS, NEVER = "id >= 0", "id < 0"  # of ids, which are not negative
NEGATED = {"=": "!=", "!=": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
TEXTS = ("path", "label", "sha256")


def translate_condition(condition: Condition, *, negated: bool = False) -> str | None:
    """Returns a filter expression that the same images meet, or None where Milvus has none.

    Negations are moved down to the comparisons: there, as in SQL, an image without a label meets neither a comparison
    of labels nor its opposite.

    Args:
        condition: of `parse_where`.
        negated: whether those are wanted that do not meet it.
    """
    if isinstance(condition, Negation):
        return translate_condition(condition.part, negated=not negated)
    if isinstance(condition, Chain):
        parts = [translate_condition(part, negated=negated) for part in condition.parts]
        known = [f"({part})" for part in parts if part is not None]
        word = "and" if (condition.word == "AND") != negated else "or"
        return f" {word} ".join(known) if len(known) == len(parts) else None
    leaf = _translate_comparison(condition, negated)
    guarded = condition.column == "label" and condition.operator != "IS NULL"
    return f"labelled == true and ({leaf})" if guarded and leaf is not None else leaf


def quote_text(text: str) -> str | None:
    """Returns a text in double quotes, None where it has signs that are better not sent."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else None


def quote_texts(texts: Sequence[str]) -> str | None:
    """Returns a list of texts in brackets, or None."""
    quoted = [quote_text(text) for text in texts]
    known = [text for text in quoted if text is not None]
    return f"[{', '.join(known)}]" if len(known) == len(texts) else None


def _translate_comparison(comparison: Comparison, negated: bool) -> str | None:
    column, operator, values = comparison.column, comparison.operator, comparison.values
    if operator == "LIKE":  # Milvus heeds case, SQLite does not
        return None
    if operator == "IS NULL":
        if column == "label":
            return f"labelled == {'true' if negated else 'false'}"
        return ALWAYS if negated else NEVER
    if operator == "IN":
        return _translate_list(column, values, "not in" if negated else "in")
    sign = NEGATED[operator] if negated else operator
    if column in TEXTS:
        text = quote_text(str(values[0]))
        return None if text is None else f"{column} {'==' if sign == '=' else sign} {text}"
    return _compare_number(column, sign, values[0])


def _translate_list(column: str, values: Sequence[Value], word: str) -> str | None:
    if column in TEXTS:
        texts = quote_texts([str(value) for value in values])
        return None if texts is None else f"{column} {word} {texts}"
    numbers = [int(value) for value in values if int(value) == value]  # columns hold whole numbers
    if not numbers:
        return NEVER if word == "in" else ALWAYS
    return f"{column} {word} {numbers}"


def _compare_number(column: str, sign: str, value: Value) -> str:
    number = float(value) if isinstance(value, float) else int(value)
    if isinstance(number, float) and not number.is_integer():
        if sign in ("=", "!="):
            return NEVER if sign == "=" else ALWAYS
        upper = sign in ("<", "<=")
        return f"{column} {'<=' if upper else '>='} {math.floor(number) if upper else math.ceil(number)}"
    return f"{column} {'==' if sign == '=' else sign} {int(number)}"
