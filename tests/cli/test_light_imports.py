"""Searching needs no torch, and help needs not even numpy: both would make a command seconds slower to start."""

from pathlib import Path

import pytest

from tests.cli.calls import Result, fill, run_process

Places = dict[str, Path]

REPORT = """
import sys
from indistill.cli.main import main
try:
    main()
finally:
    heavy = ("torch", "torchvision", "timm", "onnx", "sklearn", "numpy", "faiss", "onnxruntime")
    print("IMPORTED", *(name for name in heavy if name in sys.modules), file=sys.stderr)
"""

WITHOUT_TORCH = {
    "search": "search {index} {query} --json",
    "search --html": "search {index} {query} --html {out}",
    "dedupe": "dedupe {index}",
    "index build": "index build {gallery} --model {model} --out {out}",
    "index info": "index info {index}",
    "info": "info {model}",
    "pack": "pack {model} --out {out}",
    "evaluate INDEX": "evaluate {index} --queries {queries}",
    "evaluate INDEX --html": "evaluate {index} --leave-one-out --gallery {gallery} --also {model} --html {out}",
    "evaluate an ONNX file": "evaluate --model {model} --gallery {gallery} --queries {queries}",
}
COMPRESS = "compress --teacher {teacher} --data {loose} --out {out}"
REFUSED_AT_ONCE = {
    "data of compress": COMPRESS.replace("{loose}", "{none}"),
    "data of train": "train --model paper:cnn-s --data digits/trian --out {out}",
    "data of export": "export {run} --onnx --data {none}",
    "recipe": f"{COMPRESS} --recipe digit",
    "a key of the recipe": f"{COMPRESS} --set optimizer.lr=1",
    "teacher": COMPRESS.replace("{teacher}", "{none}"),
    "network of the paper": "train --model paper:cnn-q --data {loose} --out {out}",
    "student's file": f"{COMPRESS} --student {{none}}.py:build",
    "weights": f"{COMPRESS} --teacher-weights {{none}}.pt",
    "run of export": "export {none} --onnx",
}
HELP_PAGES = ["--help", "compress --help", "index build --help"]


def run_and_list_imports(line: str, places: Places) -> tuple[Result, set[str]]:
    result = run_process(*fill(line, places), code=REPORT)
    imported = [line for line in result.err.splitlines() if line.startswith("IMPORTED")]
    assert len(imported) == 1, result.err
    return result, set(imported[0].split()[1:])


@pytest.mark.parametrize("line", WITHOUT_TORCH.values(), ids=WITHOUT_TORCH)
def test_a_command_of_deployment_does_not_import_torch(places: Places, line: str) -> None:
    result, imported = run_and_list_imports(line, places)
    assert result.code == 0, result.err
    assert imported.isdisjoint({"torch", "torchvision", "timm", "onnx", "sklearn"})


@pytest.mark.slow
def test_the_check_for_torch_can_fail(places: Places) -> None:
    _, imported = run_and_list_imports("train --model timm:resnet19 --data {loose} --out {out}", places)
    assert "torch" in imported


@pytest.mark.parametrize("line", REFUSED_AT_ONCE.values(), ids=REFUSED_AT_ONCE)
def test_what_is_cheap_to_find_out_is_refused_before_torch_is_imported(places: Places, line: str) -> None:
    result, imported = run_and_list_imports(line, places)
    assert result.code == 2, result.err
    assert imported.isdisjoint({"torch", "torchvision", "timm"})


@pytest.mark.parametrize("line", HELP_PAGES)
def test_help_imports_neither_torch_nor_numpy(line: str) -> None:
    result, imported = run_and_list_imports(line, {})
    assert result.code == 0, result.err
    assert imported == set()


def test_the_check_for_numpy_can_fail(places: Places) -> None:
    _, imported = run_and_list_imports("index info {index}", places)
    assert "numpy" in imported
