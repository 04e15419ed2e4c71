"""One student of scikit-learn's digits, trained, exported and indexed once for all tests of the command line."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

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
def workspace(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Path]:
    """Returns, by name, what the tests read and never change. Of several workers of pytest-xdist the first makes it.

    `teacher` is a run of `train`, `run` one of `compress` with its `model`, the student.onnx; `gallery` and `queries`
    are folders of classes, `loose` one without; `index` is the gallery's; `query` is an image;
    `resnet` are weights of paper:resnet18?width=8.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "workspace"
    made = {name: root / name for name in ("teacher", "run", "index", "gallery", "queries", "loose")}
    made |= {"model": made["run"] / "student.onnx", "resnet": root / "resnet.pt"}
    with FileLock(root.with_suffix(".lock")):
        if not made["index"].exists():  # made last, complete or not at all
            _fill_workspace(made)
    made["query"] = list_files(made["queries"])[0]
    return made


def _fill_workspace(made: dict[str, Path]) -> None:
    write_digits(made["gallery"], 0, 8)
    write_digits(made["queries"], 8, 4)
    write_digits(made["loose"], 12, 4, classes=False)
    torch.save(PaperResNet18(width=8).state_dict(), made["resnet"])
    options = "--data digits/train --recipe digits --epochs 5"
    succeed(*fill(f"train --model paper:cnn-a {options} --out {{teacher}}", made))
    succeed(*fill(f"compress --teacher {{teacher}} --student paper:cnn-s {options} --out {{run}}", made))
    succeed(*fill("export {run} --onnx", made))
    succeed(*fill("index build {gallery} --model {model} --out {index}", made))


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
