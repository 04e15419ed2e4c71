"""Conditions: each random one against a plain reading of it in Python, and nothing of the user's text in the SQL."""

import re
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indistill.errors import InputError
from indistill.retrieval.store.catalogue import SCHEMA, CatalogueItem
from indistill.retrieval.where import MAX_COMPARISONS, MAX_DEPTH, MAX_LENGTH, Where, parse_where

Truth = bool | None
DAY_NS = 86_400 * 10**9
WORDS = ["dog", "Dog", "cat", "döner", "a%b", "it's", 'say "x"', "x_y", "", "or 1=1", "日本/富士.png", "a\nb"]
ITEMS = [
    CatalogueItem(
        id=3 * i + 1,
        path=f"{WORDS[i % 12]}/{i}",
        label=None if i % 5 == 0 else WORDS[(7 * i) % 12],
        sha256=f"{i % 4:064x}",
        size_bytes=(i * i) % 50 * 1000,
        modified_ns=(19_000 + i % 6) * DAY_NS + i % 3,
    )
    for i in range(40)
]
COLUMNS = {"size": "size_bytes", "modified": "modified_ns"}


@pytest.fixture(scope="module")
def catalogue() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    connection.executemany(
        "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", [tuple(vars(item).values()) for item in ITEMS]
    )
    yield connection
    connection.close()


def find(catalogue: sqlite3.Connection, text: str) -> list[int]:
    return find_ids(catalogue, parse_where(text))


def find_ids(catalogue: sqlite3.Connection, where: Where) -> list[int]:
    rows = catalogue.execute(f"SELECT id FROM items WHERE {where.sql} ORDER BY id", where.values)
    return [row[0] for row in rows]


# A condition as nested tuples; `write` gives its text, `evaluate` its truth, which is None where SQL's is null.

texts = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
patterns = st.text(st.sampled_from("dogDOGé%_/1a'"), max_size=6)
numbers = st.integers(-3, 130) | st.sampled_from([0.5, 40.25, 1e3, 49_000])
days = st.integers(18_998, 19_008)
FIELDS = {
    "path": texts,
    "label": texts,
    "sha256": st.integers(0, 5).map(lambda i: f"{i:064x}"),
    "id": numbers,
    "size": numbers,
    "modified": days,
}


@st.composite
def comparisons(draw: st.DrawFn) -> tuple:
    field = draw(st.sampled_from(list(FIELDS)))
    kind = draw(st.sampled_from(["compare", "in", "is", "like"]))
    if kind == "is":
        return ("is", field, draw(st.booleans()))
    if kind == "in":
        return ("in", field, draw(st.booleans()), tuple(draw(st.lists(FIELDS[field], min_size=1, max_size=4))))
    if kind == "like" and field in ("path", "label", "sha256"):
        return ("like", field, draw(st.booleans()), draw(patterns))
    return ("compare", field, draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">="])), draw(FIELDS[field]))


conditions = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)


def write_value(field: str, value: object) -> str:
    if field == "modified":
        time = datetime.fromtimestamp(int(str(value)) * 86_400, UTC)
        return f"'{time:%Y-%m-%d}'" if time.day % 2 else str(int(time.timestamp()))
    if not isinstance(value, str):
        return repr(value)
    return "'" + value.replace("'", "''") + "'" if "'" in value else '"' + value.replace('"', '""') + '"'


def write(condition: tuple) -> str:
    match condition:
        case ("not", inner):
            return f"not ({write(inner)})"
        case ("and" | "or" as word, parts):
            return f" {word} ".join(f"({write(part)})" if part[0] in ("and", "or") else write(part) for part in parts)
        case ("is", field, negated):
            return f"{field} IS {'not ' if negated else ''}NULL"
        case ("in", field, negated, values):
            listed = ",".join(write_value(field, value) for value in values)
            return f"{field} {'NOT ' if negated else ''}in({listed})"
        case ("like", field, negated, pattern):
            return f"{field} {'not ' if negated else ''}LIKE {write_value(field, pattern)}"
        case (_, field, operator, value):
            return f"{field.upper()}{operator} {write_value(field, value)}"
    raise AssertionError(condition)


def matches(pattern: str, text: str) -> bool:
    """SQLite's `like`, whose letters have no case in ASCII alone."""

    def lower(value: str) -> str:
        return "".join(sign.lower() if sign.isascii() else sign for sign in value)

    expression = "".join({"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in lower(pattern))
    return re.fullmatch(expression, lower(text), re.DOTALL) is not None


def negate(truth: Truth) -> Truth:
    return None if truth is None else not truth


def compare(left: object, operator: str, right: object) -> bool:
    # What is compared is of one kind.
    return {
        "=": left == right,
        "!=": left != right,
        "<": left < right,  # type: ignore[operator]
        "<=": left <= right,  # type: ignore[operator]
        ">": left > right,  # type: ignore[operator]
        ">=": left >= right,  # type: ignore[operator]
    }[operator]


def evaluate(condition: tuple, item: CatalogueItem) -> Truth:
    if condition[0] == "not":
        return negate(evaluate(condition[1], item))
    if condition[0] in ("and", "or"):
        truths = [evaluate(part, item) for part in condition[1]]
        decided = condition[0] == "or"
        if decided in truths:
            return decided
        return None if None in truths else not decided
    found = getattr(item, COLUMNS.get(condition[1], condition[1]))
    if condition[0] == "is":
        return (found is None) != condition[2]
    if found is None:
        return None
    unit = DAY_NS if condition[1] == "modified" else 1
    if condition[0] == "in":
        return (found in [value * unit for value in condition[3]]) != condition[2]
    if condition[0] == "like":
        return matches(condition[3], found) != condition[2]
    return compare(found, condition[2], condition[3] * unit)


@settings(max_examples=400, deadline=None)
@given(conditions)
def test_a_condition_finds_what_it_means(catalogue: sqlite3.Connection, condition: tuple) -> None:
    assert find(catalogue, write(condition)) == [item.id for item in ITEMS if evaluate(condition, item)]


def test_not_binds_closer_than_and_and_and_closer_than_or(catalogue: sqlite3.Connection) -> None:
    assert find(catalogue, "id = 1 or id = 4 and id = 7") == [1]
    assert find(catalogue, "(id = 1 or id = 4) and id = 4") == [4]
    assert find(catalogue, "not id > 4 and id < 100") == [1, 4]
    assert find(catalogue, "not (id > 4 or id = 1)") == [4]


def test_a_label_that_is_missing_is_neither_equal_nor_different(catalogue: sqlite3.Connection) -> None:
    unlabelled = find(catalogue, "label is null")
    assert unlabelled == [item.id for item in ITEMS if item.label is None]
    assert not set(unlabelled) & set(find(catalogue, "label = 'dog' or label != 'dog'"))


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("'2024-02-29'", 1_709_164_800 * 10**9),
        ("'2024-02-29 12:30'", 1_709_209_800 * 10**9),
        ("'2024-02-29T12:30:00.000001+01:00'", 1_709_206_200 * 10**9 + 1000),
        ("1709164800", 1_709_164_800 * 10**9),
        ("1709164800.000000001", 1_709_164_800 * 10**9 + 1),
        ("-1.5", -1_500_000_000),
        ("'1969-12-31'", -DAY_NS),
    ],
)
def test_times_are_dates_of_utc_or_seconds(text: str, nanoseconds: int) -> None:
    assert parse_where(f"modified >= {text}").values == (nanoseconds,)


REFUSED = {
    "": "at character 1: a field (id, path, label, size, sha256, modified) is expected, not the end",
    "sise > 3": "there is no field 'sise' (id, path, label, size, sha256, modified). Did you mean 'size'?",
    "id = 1 and": "at character 11: a field",
    "id = 1 id = 2": "at character 8: 'and', 'or' or the end is expected, not id",
    "id == 1": "at character 5: a number is expected, not =",
    "id = '1'": "at character 6: a number is expected, not '1'",
    "label = dog": "at character 9: a text in quotes is expected, not dog",
    "label = null": "at character 9: nothing is equal to null; write 'is null' or 'is not null'",
    "label = 'dog": "at character 9: a quote is not closed",
    "size like '1%'": "at character 6: 'like' compares text: path, label or sha256",
    "label not 'dog'": "at character 11: 'like' or 'in' is expected, not 'dog'",
    "label in ()": "at character 11: a text in quotes is expected, not )",
    "(id = 1": "at character 8: ')' is expected, not the end",
    "modified > 'yesterday'": "at character 12: 'yesterday' is not a date, as '2026-05-01' or '2026-05-01 12:30'",
    "modified > '9999-01-01'": "at character 12: '9999-01-01' is too far from 1970",
    "id = 1e999": "at character 6: 1e999 is too large",
    "id = 1e-99999999": "at character 6: 1e-99999999 is not understood",
    "id = 9223372036854775808": "at character 6: 9223372036854775808 is too large",
    "id = " + "9" * 5000: "at character 6: a number of more than 1,000 characters",
    "label = 'a\0'": "at character 9: a text that is not UTF-8, or holds a NUL",
    "label = 'caf\udce9'": "at character 9: a text that is not UTF-8, or holds a NUL",
    "\x1b[31m = 1": r"at character 1: \x1b[31m = 1 is not understood",
    "\x1f": r"at character 1: \x1f is not understood",
    "id\n= ?": "at character 6: ? is not understood",
    "not " * MAX_DEPTH + "id = 1": f"nested more than {MAX_DEPTH} deep",
    " or ".join(["id=1"] * (MAX_COMPARISONS + 1)): f"more than {MAX_COMPARISONS} comparisons",
    "id = 1" + " " * MAX_LENGTH: "10,006 characters, at most 10,000 are taken",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:20]))
def test_what_is_no_condition_is_refused_in_one_line_with_its_place(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_where(text)
    assert str(caught.value).startswith("where: ")
    assert REFUSED[text] in str(caught.value)
    assert str(caught.value).isprintable()


INJECTIONS = [
    "id = 1; drop table items",
    "id = 1 -- and more",
    "id = 1 /* and more */",
    "id = 1 union select 1, 2, 3, 4, 5, 6",
    "id = (select max(id) from items)",
    "id in (select id from items)",
    "id = load_extension('x')",
    "rowid = 1",
    "1 = 1",
    "id = id",
    "path = path",
    "id = :x",
    "items.id = 1",
    "[id] = 1",
    "`id` = 1",
    "id = 0x10",
    "id = x'00'",
    "id is 1",
    "label = 'a' || 'b'",
    "label collate nocase = 'a'",
    "label like 'a' escape 'b'",
    "label glob '*'",
    "label match 'a'",
    "label regexp 'a'",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_other_sql_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^where: "):
        parse_where(text)


@pytest.mark.parametrize("text", [*INJECTIONS, "'; drop table items; --", 'x" or "1"="1', "%' or ''='", "\\'", "?1"])
def test_sql_within_quotes_is_text(catalogue: sqlite3.Connection, text: str) -> None:
    quoted = text.replace("'", "''")
    where = parse_where(f"label = '{quoted}'")
    assert (where.sql, where.values) == ("(label = ?)", (text,))
    assert find_ids(catalogue, where) == []


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *"()=<>!,;'\"-*/?:@$`[]\\%_ \n",
                *("id ", "label ", "modified ", "null ", "is ", "and ", "or ", "not ", "in ", "like ", "select "),
                *("1", "1.5", "1e5", "0x1", "'a'", '"b"', "''", '""', "'2024-01-01'", "\0", "é"),
            ]
        ),
        max_size=12,
    ).map("".join)
    | st.text(max_size=30)
)
def test_any_text_is_refused_or_gives_sql_of_known_words_that_sqlite_takes(
    catalogue: sqlite3.Connection, text: str
) -> None:
    try:
        where = parse_where(text)
    except InputError:
        return
    words = "id|path|label|size_bytes|sha256|modified_ns|AND|OR|NOT|IN|LIKE|IS|NULL"
    assert re.fullmatch(rf"(?:(?:{words})\b|[ ?(),]|[<>!]?=|[<>])+", where.sql)
    find_ids(catalogue, where)


@pytest.mark.parametrize("level", ["(id=1 or id=2 and ", "id in (1) or id=2 and not (", "not "])
def test_the_deepest_condition_is_not_too_deep_for_sqlite(catalogue: sqlite3.Connection, level: str) -> None:
    levels = (MAX_DEPTH - 1) // (2 if "not (" in level else 1)
    opened = level.replace("(1)", "").count("(") * levels
    assert isinstance(find(catalogue, level * levels + "id in (1, 4)" + ")" * opened), list)


def test_the_longest_conditions_are_not_too_long_for_sqlite(catalogue: sqlite3.Connection) -> None:
    assert find(catalogue, " and ".join(["id=1"] * MAX_COMPARISONS)) == [1]
    assert find(catalogue, "id in (" + ",".join("1" * ((MAX_LENGTH - 8) // 2)) + ")") == [1]
