"""`indistill info` shows what an .onnx file is; a hostile one is refused by each command that would run it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from indistill.export.artefact import GRAPH_SHA256
from indistill.files.hashing import hash_file
from indistill.retrieval.store.generations import MANIFEST, MODEL
from tests.cli.calls import succeed
from tests.cli.files import write_note

Refuse = Callable[..., None]
Copy = Callable[[str], Path]
Places = dict[str, Path]
STEERING = "\x1b]0;evil\x07\x9b2J\u202e\r\nindistill: done"


def spoil(source: Path, target: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(source)
    change(model)
    for entry in model.metadata_props:
        if entry.key == GRAPH_SHA256:  # as one would who means harm
            entry.value = hashlib.sha256(model.graph.SerializeToString()).hexdigest()
    target.write_bytes(model.SerializeToString())
    return target


def store_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def change_entry(name: str, text: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        metadata = {entry.key: entry.value for entry in model.metadata_props} | {name: text}
        helper.set_model_props(model, metadata)

    return change


HOSTILE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "weights elsewhere": (store_outside, "lies in another file, '../../etc/passwd', outside the file's folder"),
    "an operator of another domain": (
        lambda model: setattr(model.graph.node[0], "domain", "com.evil"),
        "is of the domain 'com.evil'; only standard ONNX operators are run",
    ),
    "two inputs": (
        lambda model: model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])),
        "its input is image uint8 [",
    ),
    "another dimension": (change_entry("indistill.embedding_dim", "63"), "it would be embedding float32 [batch, 63]"),
    "absurd metadata": (
        change_entry(
            "indistill.preprocessing", '{"image_size": 1000000000, "crop": 1, "mean": [0,0,0], "std": [1,1,1]}'
        ),
        "at most 89,478,485 pixels",
    ),
    "metadata that steers the terminal": (change_entry("indistill.name", STEERING), "characters that are no text"),
}
LINES = {
    "info": "info {here}/other.onnx",
    "info --json": "info {here}/other.onnx --json",
    "index build": "index build {gallery} --model {here}/other.onnx --out {out}",
    "evaluate": "evaluate --model {here}/other.onnx --gallery {gallery} --queries {queries}",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(
    places: Places, refuse: Refuse, change: Callable[[onnx.ModelProto], object], words: str, line: str
) -> None:
    spoil(places["model"], places["here"] / "other.onnx", change)
    refuse(line, "other.onnx", words)


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_search_refuses_an_index_from_elsewhere_whose_model_is_hostile(
    places: Places, refuse: Refuse, copy: Copy, change: Callable[[onnx.ModelProto], object], words: str
) -> None:
    index = copy("index")
    (manifest,) = index.rglob(MANIFEST)
    model = manifest.with_name(MODEL)
    model.unlink()
    spoil(places["model"], model, change)
    claims = json.loads(manifest.read_text(encoding="utf-8")) | {"model_sha256": hash_file(model)}
    manifest.write_text(json.dumps(claims), encoding="utf-8")
    refuse("search {copied_index} {query}", MODEL, words)
    refuse("evaluate {copied_index} --queries {queries}", MODEL, words)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(places: Places, refuse: Refuse, share: float, line: str) -> None:
    whole = places["model"].read_bytes()
    (places["here"] / "other.onnx").write_bytes(whole[: int(share * len(whole))])
    refuse(line, "other.onnx")


def test_info_of_no_onnx_file_is_refused(places: Places, refuse: Refuse) -> None:
    refuse("info {none}", "there is no file {none}")
    write_note(places["here"] / "note.onnx")
    refuse("info {here}/note.onnx", "is not an ONNX file that can be run", "copy it again")


def test_info_shows_what_a_file_is_and_says_of_itself(places: Places) -> None:
    lines = dict(line.split(maxsplit=1) for line in succeed("info", places["model"]).out.splitlines())
    assert lines["file"] == str(places["model"])
    assert lines["SHA-256"] == hash_file(places["model"])
    assert lines["takes"].startswith("image uint8 [batch, ")
    assert lines["gives"] == "embedding float32 [batch, 64]"
    assert lines["name"] == "paper:cnn-s"
    assert lines["precision"] == "fp32"
    assert "max_difference" in lines["verification"]
    assert "image_size" in lines["preprocessing"]
    assert "3 Conv" in lines["operators"]
    assert lines["format"].startswith("opset 20, IR version ")


def test_info_gives_the_same_as_json(places: Places) -> None:
    facts = json.loads(succeed("info", places["model"], "--json").out)
    model = onnx.load(places["model"])
    assert facts["size_bytes"] == places["model"].stat().st_size
    assert facts["metadata"] == {entry.key: entry.value for entry in model.metadata_props}
    assert facts["artefact"]["embedding_dim"] == 64
    assert facts["artefact"]["preprocessing"]["image_size"] == 32
    assert sum(facts["operators"].values()) == len(model.graph.node)
    assert facts["outputs"] == [{"name": "embedding", "element_type": "float32", "shape": ["batch", 64]}]


def test_info_shows_a_file_from_elsewhere_and_that_it_is(places: Places) -> None:
    path = places["here"] / "other.onnx"
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("data", "scores")]
    graph = helper.make_graph([helper.make_node("Relu", ["data"], ["scores"])], "other", values[:1], values[1:])
    model = helper.make_model(graph, producer_name="another", opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"licence": "MIT", "takes": "all", "version": "7"})
    onnx.save(model, path)
    lines = dict(line.split(maxsplit=1) for line in succeed("info", path).out.splitlines() if " " in line)
    assert "written by" in succeed("info", path).out
    assert lines["written"].startswith("by ")
    assert "another program: it does not say how images are prepared" in lines["written"]
    assert lines["takes"] == "data float32 [n, 3]"
    assert lines["format"] == "opset 17, IR version 8"
    assert "metadata licence MIT\nmetadata takes   all\nmetadata version 7" in succeed("info", path).out
    assert json.loads(succeed("info", path, "--json").out)["artefact"] is None


@pytest.mark.parametrize("option", ["", "--json"])
def test_nothing_in_a_file_reaches_the_terminal_as_more_than_text(places: Places, option: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        change_entry("note" + STEERING, STEERING)(model)
        model.producer_name = STEERING
        model.graph.node[0].op_type = STEERING
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = STEERING

    path = spoil(places["model"], places["here"] / "other.onnx", change)
    result = succeed("info", path, *option.split())
    for line in result.out.splitlines():
        assert line.isprintable()
        assert not line.startswith("indistill: done")
    assert "evil" in result.out
    if option:
        assert json.loads(result.out)["metadata"]["note" + STEERING] == STEERING


def test_info_does_not_run_the_file(places: Places) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"

    path = spoil(places["model"], places["here"] / "other.onnx", change)
    assert "1 NoSuchOperator" in succeed("info", path).out


def test_an_index_cannot_be_built_with_an_operator_that_does_not_exist(places: Places, refuse: Refuse) -> None:
    shutil.copyfile(places["model"], places["here"] / "other.onnx")
    spoil(places["model"], places["here"] / "other.onnx", lambda model: setattr(model.graph.node[0], "op_type", "No"))
    refuse(LINES["index build"], "is not an ONNX file that can be run")


def test_a_run_in_place_of_a_file_says_which_file_is_meant(places: Places, refuse: Refuse, copy: Copy) -> None:
    run = copy("run")
    refuse(
        "info {copied_run}",
        "{copied_run} is a folder, and an ONNX file is needed: in it lies {copied_run}/student.onnx",
    )
    shutil.copy(run / "student.onnx", run / "student_int8.onnx")
    line = "index build {gallery} --out {out} --model {copied_run}"
    refuse(line, "in it lie {copied_run}/student.onnx, {copied_run}/student_int8.onnx")
    for file in run.glob("*.onnx"):
        file.unlink()
    refuse("info {copied_run}", "'indistill export {copied_run} --onnx' writes one")
