"""One student of scikit-learn's digits, trained, exported and indexed once for all tests of the command line."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from indistill.models.paper import PaperResNet18
from tests.cli.calls import assert_refused, fill, run_cli, snapshot, succeed
from tests.cli.files import BAD_IMAGES, list_files, write_digits


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Lets commands run in this process with one thread, as those in processes of their own do: the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns, by name, what the tests read and never change.

    `teacher` is a run of `train`, `run` one of `compress` with its `model`, the student.onnx; `gallery` and `queries`
    are folders of classes, `loose` one without; `index` is the gallery's; `query` is an image;
    `resnet` are weights of paper:resnet18?width=8.
    """
    root = tmp_path_factory.mktemp("workspace")
    made = {name: root / name for name in ("teacher", "run", "index")}
    made["model"] = made["run"] / "student.onnx"
    made["gallery"] = write_digits(root / "gallery", 0, 8)
    made["queries"] = write_digits(root / "queries", 8, 4)
    made["loose"] = write_digits(root / "loose", 12, 4, classes=False)
    made["query"] = list_files(made["queries"])[0]
    made["resnet"] = root / "resnet.pt"
    torch.save(PaperResNet18(width=8).state_dict(), made["resnet"])
    options = "--data digits/train --recipe digits --epochs 5"
    succeed(*fill(f"train --model paper:cnn-a {options} --out {{teacher}}", made))
    succeed(*fill(f"compress --teacher {{teacher}} --student paper:cnn-s {options} --out {{run}}", made))
    succeed(*fill("export {run} --onnx", made))
    succeed(*fill("index build {gallery} --model {model} --out {index}", made))
    return made


@pytest.fixture
def places(workspace: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Returns the workspace, and places of this test alone: `here`, and `out` and `none` in it, which do not exist."""
    return workspace | {"here": tmp_path, "out": tmp_path / "out", "none": tmp_path / "nothing"}


@pytest.fixture
def refuse(places: dict[str, Path]) -> Callable[..., None]:
    """Returns a function that runs a command line which must be refused, and leave the test's folder as it was."""

    def check(line: str, *fragments: str) -> None:
        before = snapshot(places["here"])
        assert_refused(run_cli(*fill(line, places)), *(fragment.format(**places) for fragment in fragments))
        assert snapshot(places["here"]) == before

    return check


@pytest.fixture
def copy(places: dict[str, Path]) -> Callable[[str], Path]:
    """Returns a function that copies a folder of the workspace into the test's own, where it may be spoilt."""

    def copy_folder(name: str) -> Path:
        target = places["here"] / f"copied-{name}"
        places[f"copied_{name}"] = target
        return Path(shutil.copytree(places[name], target))

    return copy_folder


@pytest.fixture(scope="session")
def bad_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns a file for each of `BAD_IMAGES`, written once."""
    folder = tmp_path_factory.mktemp("bad")
    return {kind: write(folder / Path(name).name) for kind, (name, write, _) in BAD_IMAGES.items()}
