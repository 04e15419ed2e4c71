"""Changes at random of what a file holds: its bytes, or the values of the JSON in it."""

import json
import random
from collections.abc import Callable

import numpy as np

HEADER_BYTES = 64  # a sixth of the changes of bytes fall in here, where sizes and formats stand
ODD_NUMBERS = (-1, 0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30)
ODD_TEXTS = ("", ".", "..", "../x", "/", "/etc/passwd", "\x00", "\x1b[31m", "\ud800", "a" * 5000, "1e999", "NaN", "é\n")


def change_bytes(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Returns a content changed in one of seven ways: bytes, bits, cut off, spliced with another, stretches of it."""
    if not content:
        return content
    in_header = rng.random() < 1 / 6
    places = rng.integers(0, min(len(content), HEADER_BYTES) if in_header else len(content), 8).tolist()
    first, last = sorted(places[:2])
    match rng.integers(7):
        case 0:
            for place in places[: rng.integers(1, 9)]:
                content[place] = rng.integers(256)
        case 1:
            for place in places[: rng.integers(1, 9)]:
                content[place] ^= 1 << int(rng.integers(8))
        case 2:
            del content[places[0] :]
        case 3:
            content[places[0] :] = other[int(rng.integers(len(other))) :]
        case 4:
            del content[first:last]
        case 5:
            content[last:last] = content[first:last]
        case _:
            content[first:last] = bytes([int(rng.choice((0, 255)))]) * (last - first)
    return content


def damage(content: bytes, generator: random.Random) -> bytes:
    """Returns bytes changed once to three times; a number of 4 or 8 bytes in them may become an odd one."""
    changed = bytearray(content)
    rng = np.random.default_rng(generator.getrandbits(64))
    for _ in range(generator.randint(1, 3)):
        if len(changed) > 8 and generator.random() < 0.3:
            size = generator.choice((4, 8))
            order = generator.choice(("little", "big"))
            number = generator.choice(ODD_NUMBERS) % (1 << 8 * size)
            place = generator.randrange(min(len(changed), generator.choice((64, 512, 1 << 30))) - size + 1)
            changed[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        else:
            changed = change_bytes(changed, content, rng)
    return bytes(changed)


def damage_json(text: str, generator: random.Random) -> str:
    """Returns JSON in which one to three values, at any depth, are others, of any type, or are missing.

    Raises:
        ValueError: it is no JSON, or nested too deep.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep to be changed") from error
    for _ in range(generator.randint(1, 3)):
        content = _change_value(content, generator)
    return json.dumps(content)


def require_line(error: Exception) -> None:
    """Raises AssertionError unless what an error says is one line."""
    assert len(str(error).splitlines()) == 1, repr(str(error))


def make_odd(generator: random.Random, value: object = None) -> object:
    """Returns an odd value of any type that JSON has, at times one that is near to a given one."""
    makers: list[Callable[[], object]] = [
        lambda: generator.choice(ODD_NUMBERS),
        lambda: generator.choice(ODD_TEXTS),
        lambda: generator.choice((None, True, False, 0.5, float("nan"), float("inf"))),
        lambda: generator.choice(([], {}, [[]], {"": None}, [value] * 3, {"a": value})),
        lambda: str(value),
        lambda: [value],
    ]
    if isinstance(value, int):
        makers += [lambda: value + generator.choice((-1, 1))] * 3
    return generator.choice(makers)()


def _change_value(value: object, generator: random.Random) -> object:
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(sorted(value))
        match generator.randrange(8):
            case 0:
                return {name: other for name, other in value.items() if name != key}
            case 1:
                return value | {str(generator.choice(ODD_TEXTS)): make_odd(generator)}
            case _:
                return value | {key: _change_value(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        place = generator.randrange(len(value))
        match generator.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], _change_value(value[place], generator), *value[place + 1 :]]
    return make_odd(generator, value)
