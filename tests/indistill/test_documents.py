"""YAML and JSON from anyone: what grows, holds itself, says a thing twice or is no value is refused in one line."""

import pytest

from indistill.files.documents import read_json, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
REFUSED = {
    "aliases that grow": (BOMB, "its aliases stand for more than 100,000 values"),
    "a value that holds itself": ("a: &a [*a]\n", "line 1: a value holds itself"),
    "a key twice": ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "line 2: the key 'c' stands there twice"),
    "a section twice": ("a: {b: 1}\na: {c: 2}\n", "line 1: the key 'a' stands there twice"),
    "code": ("a: !!python/object/apply:os.system [exit]\n", "could not determine a constructor"),
    "a module": ("a: !!python/name:os.system\n", "could not determine a constructor"),
    "nested too deep": ("[" * 5000, "it is nested too deep"),
    "no month 99": ("a: 2001-99-99\n", "month must be in 1..12"),
    "a number without digits": ("a: !!int ''\n", "a value cannot be read (IndexError"),
    "a word for a truth": ("a: !!bool perhaps\n", "a value cannot be read (KeyError"),
    "no time": ("a: !!timestamp x\n", "a value cannot be read (AttributeError"),
    "a number of 5,000 digits": ("a: " + "9" * 5000, "limit (4300 digits)"),
    "a number that cannot be printed": ("a: 0x" + "f" * 5000, "line 1: a whole number of more than 64 bits"),
    "no YAML": ("a: [1\nb: }\n", "while parsing a flow sequence"),
    "two documents": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "too long": ("#" * 2_000_000, "it has 2,000,000 characters, at most 1,048,576 are read"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_yaml_that_is_no_plain_document_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        read_yaml(text)
    assert reason in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_yaml_of_ours_is_read_aliases_too() -> None:
    assert read_yaml("a: &a {b: [1, 0.5, yes, null, text]}\nc: *a\nd: {<<: *a, e: -7}\n") == {
        "a": {"b": [1, 0.5, True, None, "text"]},
        "c": {"b": [1, 0.5, True, None, "text"]},
        "d": {"b": [1, 0.5, True, None, "text"], "e": -7},
    }
    assert read_yaml("") is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "nothing", "", "1" * 5000])
def test_json_that_is_none_or_too_deep_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_json(text)
