"""What the README and the pages of docs/ show runs, page by page, in a folder with small images and networks.

A block that cannot run here has `<!-- not run: why -->` before it; of such a block the options of indistill are parsed.
"""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.calls import REPOSITORY, succeed
from tests.cli.documents import (
    NOT_CODE,
    PAGES,
    PYTHON,
    SHELL,
    Block,
    find_calls,
    parse_call,
    read_blocks,
    run_line,
    run_python,
)
from tests.cli.files import list_files

BLOCKS = [block for page in PAGES for block in read_blocks(page)]
NOT_RUN = [block for block in BLOCKS if block.reason is not None and block.language in SHELL]
RUN_PAGES = sorted({block.page for block in BLOCKS if block.reason is None and block.language in SHELL + PYTHON})

SMALL = ["--epochs", "1", "--image-size", "32", "--batch-size", "32"]
ADDED = {
    "train": SMALL,
    "compress": [*SMALL, "--no-report"],
    "export": ["--overwrite"],
    "bench": ["--min-seconds", "0"],
}
WORDS = {
    "digits/train": "photos",
    "digits/test": "queries",
    "timm:resnet50?pretrained=true": "paper:cnn-a",
    "timm:resnet18?pretrained=true": "paper:cnn-a",
    "timm:mobilenetv3_small_100": "paper:cnn-s",
    "timm:resnet10t": "paper:cnn-s",
}


@pytest.fixture(scope="session")
def template(workspace: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of what the pages name, which each page gets a copy of."""
    root = tmp_path_factory.mktemp("documents")
    for name in ("photos", "gallery"):
        shutil.copytree(workspace["gallery"], root / name)
    shutil.copytree(workspace["queries"], root / "queries")
    shutil.copytree(workspace["loose"], root / "more")
    shutil.copytree(workspace["gallery"], root / "new" / "gallery")
    for name in ("one.jpg", "query.jpg", "photo.jpg", "q.jpg", "a.png", "b.png"):
        shutil.copy(list_files(workspace["queries"])[0], root / name)
    for name, run in (("teacher", "teacher"), ("student", "run"), ("other", "run")):
        shutil.copytree(workspace[run], root / "runs" / name)
    config = root / "runs" / "other" / "config.yaml"
    config.write_text(re.sub(r"^seed: 0$", "seed: 1", config.read_text(), flags=re.MULTILINE))
    three = shutil.copytree(workspace["gallery"], root / "demo-out" / "gallery") / "3"
    three.mkdir()
    shutil.copy(list_files(workspace["gallery"])[0], three / "00003.png")
    shutil.copy(workspace["model"], root / "student.onnx")
    succeed("index", "build", root / "gallery", "--model", root / "student.onnx", "--out", root / "gallery.index")
    return root


def clear_outputs(folder: Path, blocks: list[Block]) -> None:
    """Removes what the page itself makes."""
    words = [word for block in blocks if block.language in SHELL for word in block.code.split()]
    for option, name in pairwise(words):
        if option in ("--out", "-o") and (folder / name).exists():
            shutil.rmtree(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_the_blocks_of_a_page_run_in_their_order(
    page: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(template, tmp_path / "here")
    blocks = [block for block in BLOCKS if block.page == page and block.reason is None]
    clear_outputs(folder, blocks)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        if block.title is not None:
            (folder / block.title).write_text(block.code, encoding="utf-8")
        elif block.language in PYTHON:
            run_python(block.code, namespace, block.place)
        elif block.language in SHELL:
            for line in block.lines:
                result = run_line(line, WORDS, ADDED)
                assert result.code == 0, f"{block.place}: {line}\n{result.err}"


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_a_block_that_is_not_run_has_options_that_there_are(block: Block) -> None:
    for line in block.lines:
        for call in find_calls(line):
            parse_call(call)


def test_every_block_says_what_it_is() -> None:
    unknown = [block.place for block in BLOCKS if block.language not in SHELL + PYTHON + NOT_CODE]
    assert not unknown, "name the language after ```: " + ", ".join(unknown)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_the_tests_that_a_page_names_in_place_of_its_own_are_there(block: Block) -> None:
    named = [REPOSITORY / word.rstrip(";,") for word in (block.reason or "").split() if word.startswith("tests/")]
    assert all(path.is_file() for path in named), f"{block.place}: {block.reason}"


def test_no_command_hides_in_a_block_that_is_no_shell() -> None:
    """Help texts and output are text; `indistill` at the beginning of a line is a command."""
    hidden = [
        block.place
        for block in BLOCKS
        if block.language in NOT_CODE and any(line.startswith("indistill ") for line in block.lines)
    ]
    assert not hidden, "these want ```bash: " + ", ".join(hidden)


@pytest.mark.parametrize(
    "line", ["indistill search gallery.index q.jpg --bogus", "indistill nothing", "indistill plan"]
)
def test_a_command_that_does_not_exist_would_be_found(line: str) -> None:
    (call,) = find_calls(line)
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse_call(call)


def test_a_block_that_fails_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_line("indistill search nothing.index q.jpg", {}, {}).code == 2
    assert run_line("false | true", {}, {}).code == 1
