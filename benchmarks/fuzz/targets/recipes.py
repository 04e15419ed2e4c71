"""Recipes and `--set`: YAML that grows, recurs, runs code, repeats keys, or holds what a recipe cannot."""

from pathlib import Path
from random import Random

import yaml

from benchmarks.fuzz.texts import change_bytes, change_text, change_tree, draw_text
from indistill.runs.config import Recipe, list_recipes, load_recipe, parse_overrides

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
SNIPPETS = (
    BOMB,
    "data: &a {crop: *a}\n",
    "data: &a [*a]\n",
    "loss: !!python/object/apply:os.system ['touch owned']\n",
    "data: !!python/name:os.system\n",
    "data: {mean: !!binary gIGC}\n",
    "data: {image_size: 2001-99-99}\n",
    "data: {image_size: 2001-01-01}\n",
    "data: {image_size: 190:20:30.15}\n",
    "data: {image_size: !!int ''}\n",
    "data: {image_size: !!float x}\n",
    "data: {image_size: !!set {a, b}, crop: !!omap [a: 1]}\n",
    "data: {image_size: 0x, crop: .inf}\n",
    "<<: {data: {crop: 1}}\n",
    "data:\n  <<: *missing\n",
    "data: {crop: 1, crop: 0.5}\n",
    "data: {crop: 1}\ndata: {crop: 0.5}\n",
    "1: {a: b}\nnull: {c: d}\n",
    "? [a, b]\n: {c: d}\n",
    "? {a: b}\n: {c: d}\n",
    "data: {1: 2, null: 3, [4]: 5}\n",
    "---\ndata: {}\n---\nloss: {}\n",
    "%YAML 9.9\n---\ndata: {}\n",
    "[" * 3000,
    "data: " + "{a: " * 3000,
    "data: {image_size: " + "9" * 5000 + "}\n",
    "data: {image_size: !!timestamp x}\n",
    "data: {image_size: 0b}\n",
    "data: {mean: [[[[1]]]], std: {a: 1}}\n",
)


def attempt(random: Random, folder: Path) -> None:
    """Reads a changed recipe, or one with changed overrides."""
    name, overrides = random.choice(list_recipes()), {}
    if random.random() < 0.7:
        path = folder / "recipe.yaml"
        path.write_bytes(write_recipe(random))
        name = str(path)
    if random.random() < 0.6:
        overrides = parse_overrides([draw_setting(random) for _ in range(random.choice((1, 1, 2)))])
    load_recipe(name, overrides)
    assert not (folder / "owned").exists()


def write_recipe(random: Random) -> bytes:
    """Returns the content of a recipe file."""
    plain = Recipe().model_dump(mode="json")
    match random.randrange(4):
        case 0:
            text = random.choice(SNIPPETS)
        case 1:
            text = yaml.safe_dump(plain, sort_keys=False) + random.choice(SNIPPETS)
        case 2:
            try:
                text = yaml.safe_dump(change_tree(random, plain), sort_keys=False, allow_unicode=True)
            except RecursionError:
                text = "[" * 5000
        case _:
            text = change_text(random, yaml.safe_dump(plain, sort_keys=False))
    return change_bytes(random, text)


def draw_setting(random: Random) -> str:
    """Returns what may stand behind `--set`."""
    sections = {name: list(field.annotation.model_fields) for name, field in Recipe.model_fields.items()}
    section = random.choice([*sections, draw_text(random)])
    key = random.choice([*sections.get(section, ()), draw_text(random)])
    value = random.choice((draw_text(random), draw_text(random), random.choice(SNIPPETS)))
    return random.choice(
        (f"{section}.{key}={value}", f"{section}.{key}={value}", change_text(random, f"{section}.{key}"))
    )
