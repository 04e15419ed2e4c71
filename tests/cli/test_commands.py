"""What each command writes and prints when it goes well: data on standard output, talk on standard error."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.cli.calls import MAIN, REPOSITORY, Result, fill, make_environment, run_cli, run_process, succeed
from tests.cli.files import CLASSES

Places = dict[str, Path]
Copy = Callable[[str], Path]

COMPRESS = "compress --student paper:cnn-s --data {loose} --recipe digits --epochs 5 --out {out}"
COMPRESS_RUN = COMPRESS + " --teacher {teacher}"
TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 2 --out {out}"
STAGE_PAIRS = ["stage1:stage1", "stage2:stage2", "stage3:stage3"]
METRICS = ["map", "map_paper11", "map@r", "r_precision"]
METRICS += [f"{name}@{k}" for name in ("precision", "recall") for k in (1, 5, 10, 100)]


def read_config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))


def read_records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_student(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def strip_styles(text: str) -> str:
    """Returns text without the codes that Typer puts in where it believes to be seen, as in GitHub's CI."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def hash_bytes(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


