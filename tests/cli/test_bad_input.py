"""Bad input ends with exit code 2 and one line that says what is wrong, and leaves nothing behind."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.calls import assert_refused, fill, run_cli, run_process, snapshot, succeed
from tests.cli.files import (
    BAD_IMAGES,
    CLASSES,
    list_files,
    write_digits,
    write_empty,
    write_note,
    write_truncated_jpeg,
    write_truncated_tiff,
)

Refuse = Callable[..., None]
Copy = Callable[[str], Path]
Places = dict[str, Path]

TRAIN = "train --model paper:cnn-s --data {gallery} --recipe digits --epochs 2 --out {out}"
COMPRESS = "compress --teacher {teacher} --student paper:cnn-s --data {loose} --recipe digits --epochs 2 --out {out}"
BUILD = "index build {gallery} --model {model} --out {out}"
EVALUATE = "evaluate --model {model} --gallery {gallery} --queries {queries}"

MISSING_PATHS = {
    "data of train": TRAIN.replace("{gallery}", "{none}"),
    "data of compress": COMPRESS.replace("{loose}", "{none}"),
    "data of export": "export {run} --onnx --out {out} --data {none}",
    "weights of train": TRAIN + " --weights {none}.safetensors",
    "weights of the teacher": COMPRESS.replace("{teacher}", "paper:cnn-a") + " --teacher-weights {none}.pt",
    "weights of the student": COMPRESS + " --student-weights {none}.safetensors",
    "weights of export": "export paper:cnn-s --onnx --data {loose} --out {out} --weights {none}.safetensors",
    "weights of an evaluated index": "evaluate {index} --queries {queries} --weights {none}.safetensors",
    "weights of an evaluated ONNX file": EVALUATE + " --weights {none}.safetensors",
    "weights of evaluate": EVALUATE.replace("{model}", "paper:cnn-s") + " --weights {none}.safetensors",
    "teacher": COMPRESS.replace("{teacher}", "{none}"),
    "model file": TRAIN.replace("paper:cnn-s", "{none}.py:build"),
    "recipe": TRAIN.replace("digits", "{none}.yaml"),
    "run of export": "export {none} --onnx",
    "run of bench": "bench {none}",
    "ONNX file of bench": "bench {run} --onnx {none}.onnx",
    "model of index build": BUILD.replace("{model}", "{none}.onnx"),
    "model of search": "search {index} {query} --model {none}.onnx",
    "model of evaluate": EVALUATE.replace("{model}", "{none}.onnx"),
    "images of index build": BUILD.replace("{gallery}", "{none}"),
    "index of index info": "index info {none}",
    "index of search": "search {none} {query}",
    "index of evaluate": "evaluate {none} --queries {queries}",
    "query": "search {index} {none}.png",
    "queries": EVALUATE.replace("{queries}", "{none}"),
    "gallery": EVALUATE.replace("{gallery}", "{none}"),
}
FOLDERS_OF_IMAGES = {
    "train": TRAIN.replace("{gallery}", "{folder}"),
    "compress": COMPRESS.replace("{loose}", "{folder}"),
    "export": "export {run} --onnx --out {out} --data {folder}",
    "index build": BUILD.replace("{gallery}", "{folder}"),
    "evaluate, queries": EVALUATE.replace("{queries}", "{folder}"),
    "evaluate, gallery": EVALUATE.replace("{gallery}", "{folder}"),
}


@pytest.mark.parametrize("line", MISSING_PATHS.values(), ids=MISSING_PATHS)
def test_a_path_that_does_not_exist_is_named(refuse: Refuse, line: str) -> None:
    refuse(line, "{none}")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_an_empty_folder_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "empty"
    places["folder"].mkdir()
    refuse(line, "{folder} holds no images (.bmp, .gif,")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_without_images_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "notes"
    (places["folder"] / "one").mkdir(parents=True)
    write_note(places["folder"] / "one" / "note.txt")
    write_note(places["folder"] / "one" / ".hidden.png")
    refuse(line, "{folder} holds no images (.bmp, .gif,")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_of_damaged_images_is_refused_with_the_first_reason(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["here"] / "damaged"
    for name in ("one", "two"):
        (places["folder"] / name).mkdir(parents=True)
        write_note(places["folder"] / name / "note.jpg")
        write_truncated_jpeg(places["folder"] / name / "truncated.jpg")
    refuse(line, "none of", "4 images can be read", "one/note.jpg: not an image that Pillow can read")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_an_image_in_place_of_a_folder_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["folder"] = places["query"]
    refuse(line, "is a file, a folder of images is needed")


@pytest.mark.parametrize("line", FOLDERS_OF_IMAGES.values(), ids=FOLDERS_OF_IMAGES)
def test_a_folder_of_splits_given_whole_is_refused_and_a_split_suggested(
    places: Places, refuse: Refuse, line: str
) -> None:
    places["folder"] = places["here"] / "photos"
    write_digits(places["folder"] / "train", 0, 1)
    write_digits(places["folder"] / "test", 1, 1)
    refuse(line, "{folder} holds the splits test, train: name one, as in {folder}/test")


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_as_query_is_refused_with_the_reason(
    places: Places, refuse: Refuse, bad_images: dict[str, Path], kind: str
) -> None:
    places["bad"] = bad_images[kind]
    refuse("search {index} {query} {bad} --json --html {out}", "query {bad}: " + BAD_IMAGES[kind][2])


def test_a_query_that_is_a_folder_is_not_called_damaged(places: Places) -> None:
    result = run_cli("search", places["index"], places["gallery"])
    assert_refused(result, f"query {places['gallery']}: ")
    assert "damaged" not in result.err


def test_what_an_image_library_warns_of_stays_off_the_screen(places: Places) -> None:
    damaged = write_truncated_tiff(places["here"] / "truncated.tif")
    assert_refused(run_process("search", places["index"], damaged), f"query {damaged}: ")


@pytest.mark.parametrize("options", ["--json", "--html {out}"])
def test_a_query_whose_name_is_not_utf8_is_no_failure_of_ours(places: Places, options: str) -> None:
    query = Path(os.fsdecode(os.fsencode(places["here"]) + b"/caf\xe9.png"))
    shutil.copyfile(places["query"], query)
    result = run_process("search", places["index"], query, "-k", 1, *fill(options, places))
    assert result.code in (0, 2), result.err
    assert len(result.err.splitlines()) <= 1
    assert result.code == 0 or not places["out"].exists()


UNLABELLED = {
    "train": (TRAIN.replace("{gallery}", "{loose}"), "no classes; train needs a sub-folder"),
    "train, one class": (TRAIN.replace("{gallery}", "{gallery}/one"), "no classes; train needs a sub-folder"),
    "evaluate an index": (
        "evaluate {index} --queries {loose}",
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, queries": (
        EVALUATE.replace("{queries}", "{loose}"),
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, gallery": (
        EVALUATE.replace("{gallery}", "{loose}"),
        "no classes; evaluate without --ground-truth needs a sub-folder",
    ),
    "evaluate, other classes": ("evaluate {index} --queries digits/test", "no query has a class of the gallery"),
}


@pytest.mark.parametrize(("line", "words"), UNLABELLED.values(), ids=UNLABELLED)
def test_labels_that_are_needed_and_not_there_are_asked_for(refuse: Refuse, line: str, words: str) -> None:
    refuse(line, words)


def test_compress_refuses_a_single_image_before_anything_is_written(places: Places, refuse: Refuse) -> None:
    (places["here"] / "single").mkdir()
    shutil.copy(places["query"], places["here"] / "single")
    refuse(COMPRESS.replace("{loose}", "{here}/single"), "{here}/single", "image")


def test_train_refuses_a_single_readable_image_before_anything_is_written(places: Places) -> None:
    for name, content in (("one", places["query"].read_bytes()), ("two", b"")):
        (places["here"] / "pair" / name).mkdir(parents=True)
        (places["here"] / "pair" / name / "image.png").write_bytes(content)
    result = run_cli(*fill(TRAIN.replace("{gallery}", "{here}/pair"), places))
    assert result.code == 2, result.err
    assert result.err.splitlines()[-1].startswith("indistill: error: ")
    assert not places["out"].exists()


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


SETTINGS = {
    "recipe unknown": (
        "--recipe digit",
        "recipe 'digit' is not one of cifar10, cifar100, cub200, default, digits",
        "mean 'digits'?",
    ),
    "key unknown": ("--set data.image_sise=64", "data.image_sise: no such key. Did you mean 'image_size'?"),
    "section unknown": ("--set optimizer.lr=1", "optimizer: no such key. Did you mean 'optimiser'?"),
    "all problems at once": ("--set data.crop=2 --set optimiser.lrr=1", "data.crop: ", "optimiser.lrr: no such key"),
    "value of another type": ("--set data.flip=perhaps", "data.flip: ", "not 'perhaps'"),
    "value that is no YAML": ("--set data.crop=[", "data.crop: '[' cannot be read"),
    "no value": ("--set data.crop", "--set 'data.crop' is not of the form section.key=value"),
    "device unknown": ("--device toaster", "--device 'toaster' cannot be used here"),
    "image size too small": ("--image-size 8", "image_size 8 is too small"),
    "image size too large": ("--image-size 5000", "data.image_size: input should be less than or equal to 4096"),
}


@pytest.mark.parametrize("case", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_do_not_validate_are_refused(refuse: Refuse, case: tuple[str, ...]) -> None:
    options, *words = case
    refuse(f"{TRAIN} {options}", *words)


SIZES = {
    "export": "export {run} --onnx --out {out} --data {loose} --recipe default",
    "evaluate": EVALUATE.replace("{model}", "{run}") + " --recipe default",
}


@pytest.mark.parametrize("line", SIZES.values(), ids=SIZES)
def test_a_recipe_of_another_image_size_than_the_networks_is_refused(refuse: Refuse, line: str) -> None:
    refuse(line, "cannot take images of", "224")


@pytest.mark.parametrize("options", ["--seed 99999999999999999999", "--set data.crop=1e-9"])
def test_a_number_out_of_all_bounds_is_no_failure_of_ours(places: Places, options: str) -> None:
    result = run_cli(*fill(f"{TRAIN} {options}", places))
    assert result.code == 2, result.err
    assert not places["out"].exists()


RECIPES = {"not UTF-8": b"\xff\xfe\x00", "not YAML": b"data: [1\nloss: }\n", "a list": b"- data\n", "empty": b""}


@pytest.mark.parametrize("content", RECIPES.values(), ids=RECIPES)
def test_a_damaged_recipe_file_is_refused(places: Places, refuse: Refuse, content: bytes) -> None:
    (places["here"] / "recipe.yaml").write_bytes(content)
    refuse(TRAIN.replace("digits", "{here}/recipe.yaml"), "recipe '{here}/recipe.yaml'")


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


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


DAMAGED_RUNS: dict[str, Callable[[Path], object]] = {
    "config.yaml is no YAML": lambda run: (run / "config.yaml").write_text("a: [1\nb: }\n", encoding="utf-8"),
    "config.yaml is no mapping": lambda run: (run / "config.yaml").write_text("- 1\n", encoding="utf-8"),
    "config.yaml is no text": lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe"),
    "config.yaml lacks the network": lambda run: rewrite(run / "config.yaml", "network:", "networks:"),
    "config.yaml has a word for a number": lambda run: rewrite(run / "config.yaml", "image_size: 32", "image_size: x"),
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


def test_a_run_that_was_cut_off_is_refused_as_such(refuse: Refuse, copy: Copy) -> None:
    (copy("teacher") / "model.safetensors").unlink()
    refuse(
        COMPRESS.replace("{teacher}", "{copied_teacher}"),
        "{copied_teacher} is not complete: it has no model.safetensors; its training was cut off or goes on",
    )


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


def find(index: Path, name: str) -> Path:
    return index / "generations" / "00000001" / name


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


OUTPUTS = {
    "train": (TRAIN.replace("{out}", "{copied_teacher}"), "teacher"),
    "compress": (COMPRESS.replace("{out}", "{copied_run}"), "run"),
    "export": ("export {copied_run} --onnx", "run"),
    "export --out": ("export {run} --onnx --out {copied_run}/student.onnx", "run"),
    "index build": (BUILD.replace("{out}", "{copied_index}"), "index"),
    "search --html": ("search {index} {query} --html {copied_run}/report.html", "run"),
}


@pytest.mark.parametrize(("line", "name"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_that_exists_is_kept_without_overwrite(refuse: Refuse, copy: Copy, line: str, name: str) -> None:
    copy(name)
    refuse(line, f"{{copied_{name}}}", "exists; choose another --", "or replace it with --overwrite")


def test_a_demo_is_kept_without_overwrite(places: Places, refuse: Refuse) -> None:
    places["out"].mkdir()
    for name in (".indistill-demo", "report.html"):
        (places["out"] / name).write_text("made before", encoding="utf-8")
    refuse("demo --out {out}", "{out} exists; choose another --out, or replace it with --overwrite")


def test_runs_that_have_the_names_of_a_demos_are_kept_even_with_overwrite(places: Places, refuse: Refuse) -> None:
    for name in ("teacher", "student"):
        (places["out"] / name).mkdir(parents=True)
        (places["out"] / name / "config.yaml").write_text("mine", encoding="utf-8")
    refuse("demo --out {out} --overwrite", "{out} exists and is not a demo")


@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml"])
@pytest.mark.parametrize(
    "line", [TRAIN, COMPRESS, BUILD, "demo --out {out}"], ids=["train", "compress", "index build", "demo"]
)
def test_a_folder_of_the_users_own_is_kept_even_with_overwrite(
    places: Places, refuse: Refuse, line: str, name: str
) -> None:
    places["out"].mkdir()
    (places["out"] / name).write_text("title: my thesis\n", encoding="utf-8")
    refuse(line + " --overwrite", "{out} exists and ", "choose another --out")


LINKED_OUTPUTS = {"train": (TRAIN, "teacher"), "index build": (BUILD, "index")}


@pytest.mark.parametrize(("line", "name"), LINKED_OUTPUTS.values(), ids=LINKED_OUTPUTS)
def test_a_link_as_output_is_replaced_or_refused_but_not_half_done(
    places: Places, copy: Copy, line: str, name: str
) -> None:
    places["out"].symlink_to(copy(name))
    before = snapshot(places["here"])
    result = run_cli(*fill(line + " --overwrite", places))
    assert result.code in (0, 2), result.err
    assert not [path.name for path in places["here"].iterdir() if path.name.startswith(".")]
    if result.code == 2:
        assert snapshot(places["here"]) == before


FAILURES = {
    "train": (TRAIN.replace("{out}", "{copied_teacher}").replace("{gallery}", "{bad}"), "teacher"),
    "compress": (COMPRESS.replace("{out}", "{copied_run}").replace("{loose}", "{bad}"), "run"),
    "export": ("export {copied_run} --onnx --data {bad}", "run"),
    "index build": (BUILD.replace("{out}", "{copied_index}").replace("{gallery}", "{bad}"), "index"),
}


@pytest.mark.parametrize(("line", "name"), FAILURES.values(), ids=FAILURES)
def test_an_older_output_outlives_a_command_that_fails_with_overwrite(
    places: Places, refuse: Refuse, copy: Copy, line: str, name: str
) -> None:
    copy(name)
    places["bad"] = places["here"] / "bad"
    for label in CLASSES:
        (places["bad"] / label).mkdir(parents=True)
        write_note(places["bad"] / label / "note.png")
    refuse(line + " --overwrite")


def test_a_teacher_is_not_overwritten_by_its_own_student(refuse: Refuse, copy: Copy) -> None:
    copy("teacher")
    refuse(
        COMPRESS.replace("{teacher}", "{copied_teacher}").replace("{out}", "{copied_teacher}") + " --overwrite",
        "{copied_teacher}",
    )


BELOW_A_FILE = {
    "train": TRAIN.replace("{out}", "{file}/out"),
    "compress": COMPRESS.replace("{out}", "{file}/out"),
    "export": "export {run} --onnx --out {file}/student.onnx",
    "index build": BUILD.replace("{out}", "{file}/out"),
    "search --html": "search {index} {query} --html {file}/hits.html",
}


@pytest.mark.parametrize("line", BELOW_A_FILE.values(), ids=BELOW_A_FILE)
def test_a_place_that_cannot_be_written_to_is_refused(places: Places, refuse: Refuse, line: str) -> None:
    places["file"] = write_note(places["here"] / "file.txt")
    refuse(line, "{file}")


COMBINATIONS = {
    "criterion without pruning": (COMPRESS + " --no-warm-up --criterion l2", "of a warm-up that prunes"),
    "strict without pruning": (COMPRESS + " --set targets.alignment=regressor --strict", "of a warm-up that prunes"),
    "evaluate nothing": ("evaluate --queries {queries}", "name either an INDEX, or --model with --gallery"),
    "evaluate both": (EVALUATE.replace("evaluate", "evaluate {index}"), "name either an INDEX, or --model"),
    "evaluate without gallery": ("evaluate --model {model} --queries {queries}", "--model with --gallery"),
    "evaluate an index with gallery": ("evaluate {index} --gallery {gallery} --queries {queries}", "name either"),
    "export without a format": ("export {run} --out {out}", "say which format to export to: --onnx"),
    "export a spec without a file": ("export paper:cnn-s --onnx --data {loose}", "name the file to write with --out"),
    "export a spec without data": ("export paper:cnn-s --onnx --out {out}", "name them with --data"),
    "bench a run of train": ("bench {teacher}", "it has no teacher: name one with --teacher"),
    "bench an unknown teacher": ("bench {run} --teacher paper:nothing --rounds 1", "paper has no model 'nothing'"),
    "data set unknown": (TRAIN.replace("{gallery}", "digit/train"), "no data set of this name", "mean 'digits'?"),
    "split unknown": (TRAIN.replace("{gallery}", "digits/val"), "digits has no split 'val'"),
    "data set not fetched": (TRAIN.replace("{gallery}", "cifar10/test") + " --data-root {none}", "--download fetches"),
}


@pytest.mark.parametrize("case", COMBINATIONS.values(), ids=COMBINATIONS)
def test_options_that_do_not_go_together_are_refused(refuse: Refuse, case: tuple[str, ...]) -> None:
    line, *words = case
    refuse(line, *words)


USAGE = {
    "command unknown": "trian",
    "option unknown": "train --modle paper:cnn-s",
    "option missing": "train --model paper:cnn-s --data {gallery}",
    "argument missing": "search {index}",
    "number expected": TRAIN + " --epochs many",
    "number too small": "search {index} {query} -k 0",
    "choice unknown": COMPRESS + " --loss kl",
}


@pytest.mark.parametrize("line", USAGE.values(), ids=USAGE)
def test_wrong_usage_ends_with_exit_code_2_and_the_usage(places: Places, line: str) -> None:
    result = run_cli(*fill(line, places))
    assert result.code == 2
    assert "Usage: " in result.err
    assert "Traceback" not in result.err
    assert not places["out"].exists()


def test_a_loss_that_is_not_finite_is_our_failure_and_leaves_no_complete_run(places: Places) -> None:
    result = run_cli(*fill(TRAIN + " --lr 1e30", places))
    assert result.code == 1
    assert re.match(
        r"indistill: error: the loss of batch 1 of 1 in epoch \d .* is not finite", result.err.splitlines()[-1]
    )
    assert "Traceback" not in result.err
    assert_refused(run_cli("export", places["out"], "--onnx"), "is not complete")


def test_debug_shows_where_an_error_comes_from(places: Places) -> None:
    result = run_process("search", places["index"], places["none"], "--debug")
    assert result.code != 0
    assert result.err.startswith("Traceback (most recent call last):")
    assert f"indistill.errors.DataError: query {places['none']}: no such file" in result.err


@pytest.fixture
def spoilt_gallery(places: Places, copy: Copy, bad_images: dict[str, Path]) -> Path:
    """Returns a copy of the gallery with a bad image of each kind first, last and among the others."""
    folder = copy("gallery")
    for kind, (name, _, _) in BAD_IMAGES.items():
        shutil.copyfile(bad_images[kind], folder / name)
    return folder


def test_bad_images_of_a_gallery_are_skipped_counted_and_listed(places: Places, spoilt_gallery: Path) -> None:
    result = succeed("index", "build", spoilt_gallery, "--model", places["model"], "--out", places["out"])
    count = len(BAD_IMAGES)
    lines = [line.strip() for line in result.err.splitlines()]
    assert lines[0] == f"warning: {count} images were skipped:"
    expected = sorted((name, reason) for name, _, reason in BAD_IMAGES.values())
    for line, (name, reason) in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"{name}: {reason}")
    assert f"40 images, 64 dimensions, IDMap,Flat, generation 1, {count} skipped" in result.out
    records = read_records(find(places["out"], "skipped.jsonl"))
    assert [record["name"] for record in records] == [name for name, _ in expected]
    assert all(record["reason"].startswith(reason) for record, (_, reason) in zip(records, expected, strict=True))
    assert [path.name for path in places["here"].iterdir() if path.name.startswith(".")] == []


def test_bad_images_of_a_gallery_do_not_shift_the_others(places: Places, spoilt_gallery: Path) -> None:
    succeed("index", "build", spoilt_gallery, "--model", places["model"], "--out", places["out"])
    bad = {name for name, _, _ in BAD_IMAGES.values()}
    good = [path for path in list_files(spoilt_gallery) if path.relative_to(spoilt_gallery).as_posix() not in bad]
    assert len(good) == 40
    found = json.loads(succeed("search", places["out"], *good, "-k", 1, "--json").out)["queries"]
    for number, (path, query) in enumerate(zip(good, found, strict=True), start=1):
        (hit,) = query["hits"]
        assert hit["score"] == pytest.approx(1, abs=1e-5)
        assert (hit["rank"], hit["id"]) == (1, number)
        assert (hit["path"], hit["label"]) == (path.relative_to(spoilt_gallery).as_posix(), path.parent.name)


def test_skipped_files_are_listed_by_their_exact_names(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    names = ("one/:cat:.png", "one/[red]a.png", "one/日本.png")
    for name in names:
        write_note(folder / name)
    result = succeed("index", "build", folder, "--model", places["model"], "--out", places["out"])
    for name in names:
        assert f"  {name}: not an image" in result.err


def test_more_skipped_files_than_are_worth_printing_are_counted(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    for number in range(8):
        write_empty(folder / "one" / f"empty {number}.png")
    result = succeed("index", "build", folder, "--model", places["model"], "--out", places["out"])
    assert result.err.splitlines()[0] == "warning: 8 images were skipped:"
    assert result.err.splitlines()[-1].strip() == "and 3 more"
    assert len(read_records(find(places["out"], "skipped.jsonl"))) == 8


def test_a_gallery_file_whose_name_is_not_utf8_does_not_stop_the_build(places: Places, copy: Copy) -> None:
    folder = copy("gallery")
    name = os.fsencode(folder) + b"/one/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(places["query"].read_bytes())
    result = run_process("index", "build", folder, "--model", places["model"], "--out", places["out"], "--json")
    assert result.code == 0, result.err
    manifest = json.loads(result.out)
    assert manifest["items"] + manifest["skipped"] == 41


TRAININGS = {
    "train": (TRAIN.replace("{gallery}", "{copied_gallery}"), "gallery", 40),
    "compress": (COMPRESS.replace("{loose}", "{copied_loose}"), "loose", 20),
}


@pytest.mark.parametrize(("line", "name", "count"), TRAININGS.values(), ids=TRAININGS)
def test_a_damaged_image_of_training_is_skipped_with_a_warning(
    places: Places, copy: Copy, line: str, name: str, count: int
) -> None:
    place = "one/one 01 damaged.jpg" if name == "gallery" else "damaged.jpg"
    write_truncated_jpeg(copy(name) / place)
    result = succeed(*fill(line, places))
    assert result.err.splitlines()[0] == "warning: 1 image was skipped:"
    assert result.err.splitlines()[1].startswith(f"  {place}: damaged image")
    environment = json.loads((places["out"] / "environment.json").read_text(encoding="utf-8"))
    assert environment["images"] == count


def test_a_damaged_image_among_the_queries_is_skipped_with_a_warning(places: Places, copy: Copy) -> None:
    write_truncated_jpeg(copy("queries") / "one" / "damaged.jpg")
    result = succeed(*fill("evaluate {index} --queries {copied_queries} --json", places))
    assert "warning: 1 image was skipped:\n  one/damaged.jpg: damaged image" in result.err
    assert json.loads(result.out)["queries"] == 20


def read_records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
