"""Runs and indexes that are damaged are refused as such."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.calls import fill, succeed
from tests.cli.files import (
    write_empty,
    write_note,
)
from tests.cli.lines import COMPRESS, Copy, Places, Refuse, find


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


BOMB = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9) if i else 'y'}]" for i in range(9))
DAMAGED_RUNS: dict[str, Callable[[Path], object]] = {
    "config.yaml is no YAML": lambda run: (run / "config.yaml").write_text("a: [1\nb: }\n", encoding="utf-8"),
    "config.yaml is no mapping": lambda run: (run / "config.yaml").write_text("- 1\n", encoding="utf-8"),
    "config.yaml is no text": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"),
    "config.yaml lacks the network": lambda run: rewrite(run / "config.yaml", "network:", "networks:"),
    "config.yaml has a word for a number": lambda run: rewrite(run / "config.yaml", "image_size: 32", "image_size: x"),
    "config.yaml has no phases": lambda run: rewrite(run / "config.yaml", "schedule:", "schedule: 3\nold:"),
    "config.yaml lacks the seed": lambda run: rewrite(run / "config.yaml", "seed: 0", "sed: 0"),
    "config.yaml grows": lambda run: rewrite(run / "config.yaml", "seed: 0", f"seed: 0\n{BOMB}"),
    "environment.json is missing": lambda run: (run / "environment.json").unlink(),
    "environment.json is no JSON": lambda run: write_note(run / "environment.json"),
    "environment.json is empty": lambda run: (run / "environment.json").write_text("{}", encoding="utf-8"),
    "the weights are missing": lambda run: (run / "student.safetensors").unlink(),
    "the weights are truncated": lambda run: os.truncate(run / "student.safetensors", 2000),
}


@pytest.mark.parametrize("spoil", DAMAGED_RUNS.values(), ids=DAMAGED_RUNS)
def test_a_damaged_run_is_refused(refuse: Refuse, copy: Copy, spoil: Callable[[Path], object]) -> None:
    spoil(copy("run"))
    refuse("export {copied_run} --onnx --out {out}", "{copied_run}")


def test_a_folder_whose_command_is_a_list_is_no_run(refuse: Refuse, copy: Copy) -> None:
    rewrite(copy("run") / "config.yaml", "command: compress", "command: [compress]")
    refuse(COMPRESS.replace("{out}", "{copied_run}") + " --resume", "{copied_run} holds no run that could be resumed")


def test_a_run_that_was_cut_off_is_refused_as_such(refuse: Refuse, copy: Copy) -> None:
    (copy("teacher") / "model.safetensors").unlink()
    refuse(
        COMPRESS.replace("{teacher}", "{copied_teacher}"),
        "{copied_teacher} is not complete: it has no model.safetensors; its training was cut off or goes on",
    )


def test_search_refuses_a_model_that_is_not_the_indexs(places: Places, refuse: Refuse) -> None:
    other = "export paper:cnn-s --onnx --recipe digits --data {loose} --out {here}/other.onnx"
    succeed(*fill(other, places))
    refuse(
        "search {index} {query} --model {here}/other.onnx --html {out}",
        "{here}/other.onnx is not the model of the index {index} (SHA-256 ",
        "leave --model out, or build an index with this model",
    )


DAMAGED_INDEXES: dict[str, tuple[Callable[[Path], object], str]] = {
    "model altered": (
        lambda index: find(index, "model.onnx").write_bytes(find(index, "model.onnx").read_bytes() + b"\0"),
        "its model.onnx is not the one it was built with",
    ),
    "model missing": (lambda index: find(index, "model.onnx").unlink(), "model.onnx"),
    "CURRENT missing": (lambda index: (index / "CURRENT").unlink(), "is not an index (it has no CURRENT)"),
    "CURRENT no text": (lambda index: (index / "CURRENT").write_bytes(b"\xff\xfe"), "is damaged"),
    "CURRENT elsewhere": (lambda index: (index / "CURRENT").write_text("00000009\n"), "is damaged"),
    "manifest empty": (lambda index: write_empty(find(index, "manifest.json")), "its manifest.json cannot be read"),
    "manifest a list": (lambda index: find(index, "manifest.json").write_text("[1]"), "manifest.json cannot be read"),
    "vectors truncated": (
        lambda index: os.truncate(find(index, "index.faiss"), 500),
        "its index.faiss is not as it was",
    ),
    "vectors missing": (lambda index: find(index, "index.faiss").unlink(), "its index.faiss is missing"),
    "catalogue missing": (lambda index: find(index, "catalogue.sqlite").unlink(), "catalogue.sqlite is missing"),
    "catalogue no database": (lambda index: write_note(find(index, "catalogue.sqlite")), "is damaged"),
}


@pytest.mark.parametrize(
    "line",
    ["search {copied_index} {query} --html {out}", "evaluate {copied_index} --queries {queries}"],
    ids=["search", "evaluate"],
)
@pytest.mark.parametrize(("spoil", "words"), DAMAGED_INDEXES.values(), ids=DAMAGED_INDEXES)
def test_a_damaged_index_is_refused(
    refuse: Refuse, copy: Copy, spoil: Callable[[Path], object], words: str, line: str
) -> None:
    spoil(copy("index"))
    refuse(line, "{copied_index}", words)
