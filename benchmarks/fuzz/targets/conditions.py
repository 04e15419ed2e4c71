"""Conditions of `--where`: what is accepted runs in SQLite, alone and negated, and Milvus can be asked it or cannot."""

import sqlite3
from pathlib import Path
from random import Random

from benchmarks.fuzz.texts import NUMBERS, change_text, draw_text
from indistill.retrieval.milvus.filters import translate_condition
from indistill.retrieval.where import FIELDS, OPERATORS, Negation, Where, parse_where

COLUMNS = "id INTEGER, path TEXT, label TEXT, size_bytes INTEGER, sha256 TEXT, modified_ns INTEGER"
ROWS = [(1, "a/b.png", "dog", 10, "ab", 10**18), (2, "ü\u202e.png", None, 0, "", 0), (3, "'; drop", "=1", -1, "x", -1)]


def attempt(random: Random, folder: Path) -> None:
    """Reads a condition and asks a table."""
    text = draw_condition(random, random.randrange(5))
    if random.random() < 0.6:
        text = change_text(random, text)
    where = parse_where(text)
    connection = sqlite3.connect(":memory:")
    connection.execute(f"CREATE TABLE items ({COLUMNS})")
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", ROWS)
    met, unmet = (_ask(connection, one) for one in (where, Where(Negation(where.condition))))
    assert not met & unmet, text
    for negated in (False, True):
        filtered = translate_condition(where.condition, negated=negated)
        assert filtered is None or filtered.isprintable(), text
    connection.close()


def _ask(connection: sqlite3.Connection, where: Where) -> set[int]:
    return {row[0] for row in connection.execute(f"SELECT id FROM items WHERE {where.sql}", where.values)}


def draw_condition(random: Random, depth: int) -> str:
    """Returns a condition that can mostly be read, nested to a depth."""
    if depth > 0:
        parts = [draw_condition(random, depth - 1) for _ in range(random.choice((1, 2, 3)))]
        joined = f" {random.choice(('and', 'or', 'AND', 'Or'))} ".join(parts)
        return random.choice((f"({joined})", f"not ({joined})", f"not not {parts[0]}", joined))
    field = random.choice(list(FIELDS))
    values = [draw_operand(random) for _ in range(random.choice((1, 2, 40)))]
    return random.choice(
        (
            f"{field} {random.choice(OPERATORS)} {values[0]}",
            f"{field} {random.choice(('in', 'not in'))} ({', '.join(values)})",
            f"{field} {random.choice(('like', 'not like'))} {values[0]}",
            f"{field} is {random.choice(('', 'not '))}null",
        )
    )


def draw_operand(random: Random) -> str:
    text = draw_text(random).replace("'", "''")
    dates = ("2026-05-01", "9999-12-31", "0001-01-01", "2026-05-01 12:30+14:00", "2026-W01-1", "20260501T12")
    return random.choice((f"'{text}'", f'"{text}"', random.choice(NUMBERS), f"'{random.choice(dates)}'"))
