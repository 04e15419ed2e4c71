"""Texts and values that programs trip over, and changes of texts and of trees of values."""

import json
from collections.abc import Sequence
from random import Random
from typing import Any

ESCAPES = ("\x1b[31m", "\x1b]0;owned\x07", "\x9b2J", "\u202egpj.exe", "\u2028", "\r", "\n", "\t", "\x7f", "\ufeff")
MARKUP = ("[/]", "[red]", "[bold", "<img src=x onerror=alert(1)>", "</script>", "{{ 7*7 }}", "${HOME}", "%s%n", "$x_{$")
NUMBERS = (
    "nan", "inf", "-inf", "1e400", "-1e400", "1e-400", "0", "-0", "-1", "1", "2", "3.5", "1_0", "0x10", "0b", "0o", "٣",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" * 5000, "1e", ".", "+", "1e3", "999999",
)  # fmt: skip
WORDS = (
    "", " ", "'", '"', "\\", "é", "e\u0301", "日本", "😀", "a" * 300, "a" * 5000, "null", "true", "~", ".", "..", "-",
    "--", "=", ":", "a:b", "=cmd()", "#", "&", "?", "a?b=c", "*", "a/b", "./x", "//", "@file", "%00", "\\x00",
)  # fmt: skip
ALL = (*ESCAPES, *MARKUP, *NUMBERS, *WORDS)


def draw_text(random: Random) -> str:
    """Returns one of the texts, or some of them joined."""
    return "".join(random.choice(ALL) for _ in range(random.choice((1, 1, 1, 2, 3))))


def draw_value(random: Random) -> Any:
    """Returns a value as JSON and YAML can have."""
    match random.randrange(12):
        case 0:
            return None
        case 1:
            return random.choice((True, False))
        case 2:
            return random.choice((0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400))
        case 3:
            return random.choice((0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")))
        case 4:
            return []
        case 5:
            return {}
        case 6:
            return [draw_value(random) for _ in range(random.randrange(4))]
        case 7:
            return {draw_text(random): draw_value(random) for _ in range(random.randrange(4))}
        case 8:
            value: Any = 1
            for _ in range(random.choice((3, 50, 5000))):
                value = [value]
            return value
        case _:
            return draw_text(random)


def change_text(random: Random, text: str) -> str:
    """Returns a text after some changes: pieces taken out, doubled, moved, or replaced by texts of `ALL`."""
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        first, last = sorted(random.randrange(len(text) + 1) for _ in range(2))
        last = min(last, first + random.choice((0, 1, 4, 40)))
        piece = random.choice(("", text[first:last] * 2, draw_text(random), draw_text(random)))
        text = text[:first] + piece + text[last:]
    return text


def change_bytes(random: Random, text: str) -> bytes:
    """Returns the bytes of a text: in UTF-8, now and then in another encoding, cut off, or with bytes that are none."""
    encoding = random.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32"))
    content = bytearray(text.encode(encoding, "replace"))
    match random.randrange(6) if content else 0:
        case 1:
            content[random.randrange(len(content))] = random.choice((0, 0xFF, 0xC0, 0x80, random.randrange(256)))
        case 2:
            del content[random.randrange(len(content)) :]
        case _:
            pass
    return bytes(content)


def change_tree(random: Random, tree: Any) -> Any:
    """Returns a tree of dicts and lists after some changes of its values and names; the tree itself stays."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        places = list(list_places(tree))
        tree = _replace(random, tree, random.choice(places))
    return tree


def format_json(tree: Any) -> str:
    """Returns a tree as JSON; one that is too deep to be written as brackets that are too deep to be read."""
    try:
        return json.dumps(tree)
    except RecursionError:
        return "[" * 100_000


def list_places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths to all values of a tree, but for what lies deeper than a tree of ours does."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    found = [place]
    if len(place) < 12:
        for key, value in items[:50]:
            found += list_places(value, (*place, key))
    return found


def _replace(random: Random, tree: Any, place: tuple[Any, ...]) -> Any:
    if not place:
        return draw_value(random)
    key, rest = place[0], place[1:]
    if isinstance(tree, list):
        return [_replace(random, value, rest) if number == key else value for number, value in enumerate(tree)]
    if rest or random.random() < 0.6:
        return {name: _replace(random, value, rest) if name == key else value for name, value in tree.items()}
    if random.random() < 0.5:
        return {name: value for name, value in tree.items() if name != key}
    return {draw_text(random) if name == key else name: value for name, value in tree.items()}
