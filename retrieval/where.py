"""Conditions on catalogued images, as `label = 'dog' and size > 10000`, and the SQL that they become. Needs no torch.

    condition  = and-part { "or" and-part }
    and-part   = negation { "and" negation }
    negation   = "not" negation | "(" condition ")" | comparison
    comparison = field ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
               | field [ "not" ] "like" text
               | field [ "not" ] "in" "(" value { "," value } ")"
               | field "is" [ "not" ] "null"

Nothing that the user writes comes into the SQL: fields and words are looked up, values are bound parameters.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from indistill.errors import InputError, escape_text, suggest_nearest

Value = str | int | float
Kind = Literal["text", "number", "time"]


class Field(NamedTuple):
    """The column of a field, and what it is compared with."""

    column: str
    kind: Kind


FIELDS = {
    "id": Field("id", "number"),
    "path": Field("path", "text"),
    "label": Field("label", "text"),
    "size": Field("size_bytes", "number"),
    "sha256": Field("sha256", "text"),
    "modified": Field("modified_ns", "time"),
}
OPERATORS = ("=", "!=", "<", "<=", ">", ">=")
MAX_LENGTH = 10_000
MAX_DEPTH = 15  # SQLite before 3.46 keeps 100 symbols, and a level takes five: a or b and (
MAX_COMPARISONS = 500  # SQLite refuses an expression whose tree is 1,000 deep
MAX_DIGITS = 1000  # of a number; Python refuses 4,301
LARGEST_INTEGER = 2**63 - 1  # of SQLite
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?)(?!\w)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|[=<>(),])
    | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)


@dataclass(frozen=True)
class Comparison:
    """A column of the table `items` compared with values: one of OPERATORS, LIKE, IN, or IS NULL, which has none."""

    column: str
    operator: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Negation:
    """What holds where a condition is false."""

    part: "Condition"


@dataclass(frozen=True)
class Chain:
    """Conditions joined by one word."""

    word: Literal["AND", "OR"]
    parts: tuple["Condition", ...]


Condition: TypeAlias = Comparison | Negation | Chain


@dataclass(frozen=True)
class Where:
    """A condition on the columns of the table `items`."""

    condition: Condition

    @property
    def sql(self) -> str:
        """The condition as SQL, with a mark for each value."""
        return f"({_write_sql(self.condition)})"

    @property
    def values(self) -> tuple[Value, ...]:
        """What the marks stand for, in their order."""
        return tuple(_list_values(self.condition))


class Token(NamedTuple):
    """A word, sign, number or text, and where it begins, counted from 1; the kind is `end` after the last one."""

    kind: str
    text: str
    position: int


def parse_where(text: str) -> Where:
    """Returns a condition, which is SQL with bound parameters.

    Fields are id, path, label, size (bytes), sha256 and modified. Texts stand in single or double quotes, and a quote
    within is doubled. `modified` is compared with a date, `'2026-05-01'` or `'2026-05-01 12:30'` (UTC unless it names
    an offset), or with seconds since 1970. The logic is SQL's: of labels, one that is missing meets `is null` alone.
    `like` knows `%` and `_`, and takes a to z and A to Z for the same.

    Raises:
        InputError: the text is no such condition; the message says where and why.
    """
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise InputError(f"where: {len(text):,} characters, at most {MAX_LENGTH:,} are taken")
        self._tokens = _split(text)
        self._next = 0
        self._depth = 0
        self._comparisons = 0

    def parse(self) -> Where:
        condition = self._read_or()
        if self._peek().kind != "end":
            self._refuse("'and', 'or' or the end")
        return Where(condition)

    def _read_or(self) -> Condition:
        return self._read_chain("OR", lambda: self._read_chain("AND", self._read_not))

    def _read_chain(self, word: Literal["AND", "OR"], read: Callable[[], Condition]) -> Condition:
        parts = [read()]
        while self._take(word.lower()):
            parts.append(read())
        return Chain(word, tuple(parts)) if len(parts) > 1 else parts[0]

    def _read_not(self) -> Condition:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            _fail(self._peek(), f"nested more than {MAX_DEPTH} deep")
        condition: Condition
        if self._take("not"):
            condition = Negation(self._read_not())
        elif self._take("("):
            condition = self._read_or()
            self._require(")")
        else:
            condition = self._read_comparison()
        self._depth -= 1
        return condition

    def _read_comparison(self) -> Condition:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            _fail(self._peek(), f"more than {MAX_COMPARISONS} comparisons")
        column, kind = self._read_field()
        for operator in OPERATORS:
            if self._take(operator):
                if self._peek().text.lower() == "null":
                    _fail(self._peek(), "nothing is equal to null; write 'is null' or 'is not null'")
                return Comparison(column, operator, (self._read_value(kind),))
        if self._take("is"):
            negated = self._take("not")
            self._require("null")
            return _negate(Comparison(column, "IS NULL"), negated)
        negated = self._take("not")
        if self._take("in"):
            return _negate(Comparison(column, "IN", self._read_list(kind)), negated)
        if self._peek().text.lower() == "like" and kind != "text":
            _fail(self._peek(), "'like' compares text: path, label or sha256")
        if not self._take("like"):
            self._refuse("'like' or 'in'" if negated else "one of = != < <= > >=, like, in, is")
        return _negate(Comparison(column, "LIKE", (self._read_value(kind),)), negated)

    def _read_field(self) -> Field:
        token = self._peek()
        if token.kind != "word":
            self._refuse(f"a field ({', '.join(FIELDS)})")
        field = FIELDS.get(token.text.lower())
        if field is None:
            hint = suggest_nearest(token.text.lower(), FIELDS)
            _fail(token, f"there is no field '{escape_text(token.text, 40)}' ({', '.join(FIELDS)}).{hint}")
        self._next += 1
        return field

    def _read_list(self, kind: Kind) -> tuple[Value, ...]:
        self._require("(")
        values = [self._read_value(kind)]
        while self._take(","):
            values.append(self._read_value(kind))
        self._require(")")
        return tuple(values)

    def _read_value(self, kind: Kind) -> Value:
        """Returns a value for a field of a kind, and passes over it."""
        token = self._peek()
        value: Value
        if kind == "text" and token.kind == "text":
            value = _unquote(token)
        elif kind == "time" and token.kind == "text":
            value = _read_time(token)
        elif kind != "text" and token.kind == "number":
            value = _read_number(token, nanoseconds=kind == "time")
        else:
            self._refuse(
                {"text": "a text in quotes", "number": "a number", "time": "a date in quotes or seconds since 1970"}[
                    kind
                ]
            )
        self._next += 1
        return value

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self, wanted: str) -> bool:
        """Passes over a word or sign if it comes next, and returns whether it did."""
        token = self._peek()
        found = token.kind in ("word", "sign") and token.text.lower() == wanted
        self._next += found
        return found

    def _require(self, wanted: str) -> None:
        if not self._take(wanted):
            self._refuse(f"'{wanted}'")

    def _refuse(self, expected: str) -> NoReturn:
        token = self._peek()
        _fail(token, f"{expected} is expected, not {escape_text(token.text, 40) if token.text else 'the end'}")


def _negate(condition: Condition, negated: bool) -> Condition:
    return Negation(condition) if negated else condition


def _write_sql(condition: Condition) -> str:
    if isinstance(condition, Negation):
        inner = _write_sql(condition.part)
        return f"NOT ({inner})" if isinstance(condition.part, Chain) else f"NOT {inner}"
    if isinstance(condition, Chain):
        parts = [
            f"({_write_sql(part)})"
            if condition.word == "AND" and isinstance(part, Chain) and part.word == "OR"
            else _write_sql(part)
            for part in condition.parts
        ]
        return f" {condition.word} ".join(parts)
    if condition.operator == "IS NULL":
        return f"{condition.column} IS NULL"
    marks = ", ".join("?" * len(condition.values))
    return f"{condition.column} {condition.operator} {f'({marks})' if condition.operator == 'IN' else marks}"


def _list_values(condition: Condition) -> Iterator[Value]:
    if isinstance(condition, Comparison):
        yield from condition.values
        return
    for part in (condition.part,) if isinstance(condition, Negation) else condition.parts:
        yield from _list_values(part)


def _split(text: str) -> list[Token]:
    tokens: list[Token] = []
    end = 0
    while not tokens or tokens[-1].kind != "end":
        match = TOKEN.match(text, end)
        if match is None or match.lastgroup is None:
            rest = text[end:].lstrip(" \t\n\r\f\v")  # what the pattern passes over
            token = Token("", rest, len(text) - len(rest) + 1)
            _fail(token, "a quote is not closed" if rest[0] in "'\"" else f"{escape_text(rest, 20)} is not understood")
        tokens.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        end = match.end()
    return tokens


def _unquote(token: Token) -> str:
    quote = token.text[0]
    text = token.text[1:-1].replace(2 * quote, quote)
    if "\0" in text or text != text.encode("utf-8", "replace").decode("utf-8"):
        _fail(token, "a text that is not UTF-8, or holds a NUL")
    return text


def _read_number(token: Token, *, nanoseconds: bool) -> int | float:
    if len(token.text) > MAX_DIGITS:
        _fail(token, f"a number of more than {MAX_DIGITS:,} characters")
    scaled = Fraction(token.text) * (10**9 if nanoseconds else 1)
    if abs(scaled) > LARGEST_INTEGER:
        _fail(token, f"{escape_text(token.text, 40)} is too large")
    return int(scaled) if nanoseconds or scaled == int(scaled) else float(scaled)


def _read_time(token: Token) -> int:
    try:
        time = datetime.fromisoformat(_unquote(token))
    except ValueError:
        _fail(token, f"{escape_text(token.text, 40)} is not a date, as '2026-05-01' or '2026-05-01 12:30'")
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH
    nanoseconds = since // timedelta(microseconds=1) * 1000
    if abs(nanoseconds) > LARGEST_INTEGER:
        _fail(token, f"{escape_text(token.text, 40)} is too far from 1970")
    return nanoseconds


def _fail(token: Token, reason: str) -> NoReturn:
    raise InputError(f"where: at character {token.position}: {reason}")
