"""Model specs, stages, weights and exported files that cannot be used are refused with a way out."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.calls import fill, run_cli, run_process, succeed
from tests.cli.files import (
    write_empty,
    write_note,
)
from tests.cli.lines import BUILD, COMPRESS, EVALUATE, TRAIN, Places, Refuse

SPECS = {
    "nearest name of the paper's": ("paper:cnn-q", "paper has no model 'cnn-q'. Did you mean 'cnn-s'?"),
    "nearest name of timm's": ("timm:resnet19", "timm has no model 'resnet19'. Did you mean 'resnet18'?"),
    "nearest name of torchvision's": ("torchvision:resnet19", "torchvision has no model 'resnet19'. Did you mean"),
    "nearest prefix": ("papr:cnn-s", "no Python package 'papr' is installed; use paper:NAME", "mean 'paper'?"),
    "prefix forgotten": ("resnet18", "'resnet18' is not a model spec; use paper:NAME", "Or 'paper:resnet18'?"),
    "zoo forgotten": ("resnet50", "Did you mean 'timm:resnet50' or 'torchvision:resnet50'?"),
    "folder that is not there": ("runs/teacher", "is not a model spec, and there is no folder runs/teacher; use"),
    "argument misspelt": ("timm:resnet18?pretraind=true", "argument 'pretraind'. Did you mean 'pretrained'?"),
    "folder that is no run": ("{gallery}", "is a folder without config.yaml; use paper:NAME"),
    "argument unknown": ("paper:cnn-s?width=3", "could not be built with", "unexpected keyword argument 'width'"),
    "argument without a value": ("paper:cnn-s?width", "'width' is not of the form name=value"),
    "argument that is no YAML": ("paper:cnn-s?width=[", "'width'"),
    "argument that is a list": ("paper:cnn-s?width=[1,2]", "the value of 'width' is not a word, number or"),
    "classes other than the data's": ("paper:cnn-s?num_classes=3", "gives (3,) for an image, the data has 5 classes"),
    "size other than the data's": ("paper:cnn-s?num_classes=5&image_size=64", "cannot take images of (3, 32, 32)"),
    "embedding that is not there": (
        "paper:cnn-s?embedding=fc9",
        "the model has no node 'fc9'",
        "conv1, conv1_bn, pool",
    ),
    "function that is no network": ("os:getcwd", "returned str, a torch.nn.Module is needed"),
    "function that is not there": ("os:getcwt", "os has no function 'getcwt'. Did you mean 'getcwd'?"),
}


@pytest.mark.parametrize("case", SPECS.values(), ids=SPECS)
def test_a_model_spec_that_cannot_be_used_is_refused_with_a_way_out(refuse: Refuse, case: tuple[str, ...]) -> None:
    spec, *words = case
    refuse(TRAIN.replace("paper:cnn-s", spec), *words)


def test_the_spec_suggested_for_another_number_of_classes_works(places: Places) -> None:
    result = run_cli(*fill(TRAIN.replace("paper:cnn-s", "paper:cnn-s?num_classes=3"), places))
    found = re.search(r"as in '(.*)'$", result.err.strip())
    assert found is not None
    succeed(*fill(TRAIN.replace("paper:cnn-s", found[1]), places))


BROKEN_MODULES = {
    "import that fails": ("import no_such_package_anywhere\n", "no_such_package_anywhere"),
    "syntax error": ("def build(:\n", "syntax"),
}


@pytest.mark.parametrize(("code", "word"), BROKEN_MODULES.values(), ids=BROKEN_MODULES)
def test_a_model_file_that_does_not_import_is_bad_input(places: Places, refuse: Refuse, code: str, word: str) -> None:
    (places["here"] / "mine.py").write_text(code, encoding="utf-8")
    refuse(TRAIN.replace("paper:cnn-s", "{here}/mine.py:build"), "{here}/mine.py", word)


STAGES = {
    "teacher's node unknown": (
        "--pair stag1:stage1",
        "the teacher has no node 'stag1'. Did you mean 'stage1'? It has:",
    ),
    "student's node unknown": ("--pair stage1:layer1", "the student has no node 'layer1'", "conv1, conv1_bn, pool"),
    "no pair": ("--pair stage1", "'stage1' is not of the form TEACHER_NODE:STUDENT_NODE"),
    "embedding that a run has not": ("--teacher {teacher}?embedding=fc9", "the teacher has no node 'fc9'", "conv1_bn"),
    "map and vector": ("--pair stage1:embedding", "both must be maps (C, H, W) or both vectors (C)"),
    "teacher narrower": (
        "--teacher {run} --student paper:cnn-a",
        "stage stage1:stage1: the teacher has 8 channels, fewer than the student's 16",
        "--pair TEACHER:STUDENT",
    ),
    "student wider at each stage": (
        "--student torchvision:resnet18",
        "fewer than the student's 64",
        "--pair TEACHER:STUDENT, or --set targets.alignment=regressor, or leave the warm-up out with --no-warm-up",
    ),
    "student wider at one stage": (
        "--teacher paper:resnet18?width=8 --student torchvision:shufflenet_v2_x0_5 --strict",
        "fewer than the student's",
        "use a narrower student",
    ),
    "criterion that needs a batch norm": (
        "--teacher paper:resnet18?width=8 --teacher-weights {resnet} --criterion bn-scale",
        "--criterion bn-scale needs a batch norm behind 'stage1.1.conv2', and there is none",
    ),
    "no batch norm": (
        "--teacher paper:resnet18?width=8 --teacher-weights {resnet} --faithful",
        "a batch norm behind the last convolution of each teacher stage",
    ),
}


@pytest.mark.parametrize("case", STAGES.values(), ids=STAGES)
def test_stages_that_cannot_be_paired_are_refused_with_what_there_is(refuse: Refuse, case: tuple[str, ...]) -> None:
    options, *words = case
    refuse(f"{COMPRESS} {options}", *words)


def test_weights_of_another_network_are_refused_with_the_first_mismatches(refuse: Refuse) -> None:
    refuse(
        TRAIN + " --weights {teacher}/model.safetensors",
        "{teacher}/model.safetensors are those of another network: conv1.weight is (16, 3, 3, 3), "
        "the network has (8, 3, 3, 3); conv1.bias is (16,), the network has (8,)",
        "and 19 more",
    )


def test_weights_with_other_names_are_refused_with_the_first_mismatches(places: Places, refuse: Refuse) -> None:
    weights = load_file(places["run"] / "student.safetensors")
    weights["fc3.bias"] = weights.pop("fc2.bias")
    torch.save(weights, places["here"] / "renamed.pt")
    refuse(
        COMPRESS + " --student-weights {here}/renamed.pt",
        "another network: fc2.bias is missing; fc3.bias is not in the network",
    )


class Trap:
    """When unpickled by plain pickle, creates a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


TRAPS: dict[str, Callable[[Trap, Path], object]] = {
    "a pickle": lambda trap, path: path.write_bytes(pickle.dumps(trap)),
    "a pickle in torch's archive": lambda trap, path: torch.save({"conv1.weight": trap}, path),
}


@pytest.mark.parametrize("option", ["--student-weights", "--teacher paper:cnn-a --teacher-weights"])
@pytest.mark.parametrize("write", TRAPS.values(), ids=TRAPS)
def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    places: Places, refuse: Refuse, write: Callable[[Trap, Path], object], option: str
) -> None:
    trap = Trap(places["here"] / "sprung")
    write(trap, places["here"] / "trap.pt")
    refuse(
        f"{COMPRESS} {option} {{here}}/trap.pt",
        "{here}/trap.pt holds something other than tensors, or is damaged, and was not opened",
        "torch.save(model.state_dict(), FILE)",
    )
    assert not trap.folder.exists()


def test_the_pickle_with_code_in_it_does_run_where_it_is_opened(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    pickle.loads(pickle.dumps(trap))
    assert trap.folder.is_dir()


BAD_WEIGHTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("weights.pt", write_note),
    "an empty file": ("weights.pt", write_empty),
    "a truncated archive": (
        "weights.pt",
        lambda path: (torch.save({"a": torch.zeros(999)}, path), path.write_bytes(path.read_bytes()[:2000])),
    ),
    "a tensor": ("weights.pt", lambda path: torch.save(torch.zeros(1), path)),
    "a list": ("weights.pth", lambda path: torch.save([torch.zeros(1)], path)),
    "numbers": ("weights.pt", lambda path: torch.save({"state_dict": {"conv1.weight": 1}}, path)),
    "names that are no text": ("weights.pt", lambda path: torch.save({1: torch.zeros(1)}, path)),
    "text as safetensors": ("weights.safetensors", write_note),
    "an empty file as safetensors": ("weights.safetensors", write_empty),
    "a pickle as safetensors": ("weights.safetensors", lambda path: torch.save({"a": torch.zeros(1)}, path)),
    "another suffix": ("weights.h5", write_note),
}


@pytest.mark.parametrize(("name", "write"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_a_file_that_holds_no_weights_is_refused(
    places: Places, refuse: Refuse, name: str, write: Callable[[Path], object]
) -> None:
    places["weights"] = places["here"] / name
    write(places["weights"])
    refuse(TRAIN + " --weights {weights}", "weights: {weights} ")


def write_foreign_onnx(path: Path) -> None:
    """Writes a valid ONNX file that says nothing of itself."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "embedding")]
    node = onnx.helper.make_node("Identity", ["image"], ["embedding"])
    graph = onnx.helper.make_graph([node], "foreign", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)


BAD_ONNX: dict[str, tuple[Callable[[Path], object], str]] = {
    "another program's": (write_foreign_onnx, "was not written by 'indistill export"),
    "text": (write_note, "is not an ONNX file that can be run"),
    "an empty file": (write_empty, "is not an ONNX file that can be run"),
}


@pytest.mark.parametrize("line", [BUILD, EVALUATE], ids=["index build", "evaluate"])
@pytest.mark.parametrize(("write", "words"), BAD_ONNX.values(), ids=BAD_ONNX)
def test_an_onnx_file_that_is_not_ours_is_refused(
    places: Places, refuse: Refuse, write: Callable[[Path], object], words: str, line: str
) -> None:
    write(places["here"] / "other.onnx")
    refuse(line.replace("{model}", "{here}/other.onnx"), "other.onnx", words)


def test_a_truncated_export_is_refused(places: Places, refuse: Refuse) -> None:
    (places["here"] / "half.onnx").write_bytes(places["model"].read_bytes()[:20_000])
    refuse(BUILD.replace("{model}", "{here}/half.onnx"), "{here}/half.onnx is not an ONNX file that can be run")


@pytest.mark.slow
def test_weights_that_cannot_be_fetched_may_be_brought_as_a_file(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(places["here"] / "none"))
    result = run_process(*fill(TRAIN.replace("paper:cnn-s", "timm:resnet18?pretrained=true"), places))
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("indistill: error: the weights of 'timm:resnet18?pretrained=true' could not be fetched: ")
    assert "bring them as a file: 'timm:resnet18' with --weights FILE (of 'compress': --teacher-weights FILE" in line
    assert len(result.err.splitlines()) == 2  # and that they are fetched
