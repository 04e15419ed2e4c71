"""Manifests: tables with quotes that stay open, NULs, marks, other encodings, giant cells, ragged and repeated rows."""

from pathlib import Path
from random import Random

from PIL import Image

from benchmarks.fuzz.texts import change_bytes, change_text, change_tree, draw_text, draw_value, format_json
from indistill.data.sets import ImageSet, require_labels
from indistill.data.specs import open_images
from indistill.errors import DataError

PIECES = (
    "\0",
    '"',
    '""',
    '"\n',
    ",",
    ",,",
    "\r\n",
    "\r",
    "\n\n",
    ";",
    "\t",
    '"' + "x" * 200_000,
    "=1+1",
    "path",
    "label",
)
NAMES = (
    "0.png",
    "1.png",
    "2.png",
    "../0.png",
    "sub/../0.png",
    "./1.png",
    "missing.png",
    "0.png/x",
    ".",
    "/",
    "x" * 300,
)


def attempt(random: Random, folder: Path) -> None:
    """Opens a manifest, and reads its images."""
    for number in range(3):
        Image.new("RGB", (8, 8), (number * 80, 0, 0)).save(folder / f"{number}.png")
    kind = random.choice(("csv", "csv", "jsonl"))
    path = folder / random.choice((f"images.{kind}", f"images.{kind}", f"metadata.{kind}"))
    path.write_bytes(change_bytes(random, write_csv(random) if kind == "csv" else write_jsonl(random)))
    use_images(open_images(str(folder if path.stem == "metadata" and random.random() < 0.5 else path)))


def use_images(images: ImageSet) -> None:
    """Reads some images of a set as all commands do: one that cannot be read is skipped."""
    assert len(images.names) == len(images.labels)
    for position in range(min(len(images.names), 5)):
        try:
            images.fetch(position)
            images.read(position)
        except (DataError, OSError):
            continue
    require_labels(images, "train")


def write_csv(random: Random) -> str:
    header = random.choice(
        ("path,label", "path,label", "path", "file_name,label", "label,path", "a,b", "path,path", "")
    )
    rows = [
        ",".join(
            random.choice((draw_text(random), random.choice(NAMES))) for _ in range(random.choice((1, 2, 2, 2, 3)))
        )
        for _ in range(random.randrange(6))
    ]
    text = "\n".join([header, *rows]) + "\n"
    if random.random() < 0.5:
        place = random.randrange(len(text))
        text = text[:place] + random.choice(PIECES) + text[place:]
    return change_text(random, text) if random.random() < 0.3 else text


def write_jsonl(random: Random) -> str:
    rows = []
    for _ in range(random.randrange(1, 6)):
        row = {random.choice(("path", "path", "file_name")): random.choice(NAMES), "label": draw_value(random)}
        rows.append(format_json(change_tree(random, row) if random.random() < 0.5 else row))
    text = "\n".join(rows)
    return change_text(random, text) if random.random() < 0.5 else text
