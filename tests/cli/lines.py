"""Command lines that the tests spoil, and where an index keeps its files."""

import json
from collections.abc import Callable
from pathlib import Path

Refuse = Callable[..., None]
Copy = Callable[[str], Path]
Places = dict[str, Path]

TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 2 --out {out}"
COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --data {loose} --recipe digits --epochs 2 --out {out}"
BUILD = "index build {gallery} --model {model} --out {out}"
EVALUATE = "evaluate --model {model} --gallery {gallery} --queries {queries}"


def find(index: Path, name: str) -> Path:
    return index / "generations" / "00000001" / name


def read_records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
