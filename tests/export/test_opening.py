"""An .onnx file from anyone is whole, safe and what it says, or one line says why it is not opened."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from indistill.errors import ModelError
from indistill.export import opening, wire
from indistill.export.artefact import GRAPH_SHA256
from indistill.export.opening import examine_file, open_file
from indistill.export.session import EmbeddingSession
from tests.cli.calls import run_process
from tests.export.conftest import PREPROCESSING

Change = Callable[[onnx.ModelProto], object]
SYMBOLIC = ["batch", "height", "width", 3]
PIXELS = {"layout": "NHWC", "dtype": "uint8", "colours": "RGB"}
NORMALISED = {"layout": "NCHW", "dtype": "float32", "colours": "RGB"}


def spoil(file: Path, folder: Path, change: Change) -> Path:
    model = onnx.load(file)
    change(model)
    seal(model)
    path = folder / "other.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def seal(model: onnx.ModelProto) -> None:
    """Writes the hash of a changed graph, as one would who means harm."""
    for entry in model.metadata_props:
        if entry.key == GRAPH_SHA256:
            entry.value = hashlib.sha256(model.graph.SerializeToString()).hexdigest()


def refuse(path: Path) -> str:
    with pytest.raises(ModelError) as refused:
        EmbeddingSession(path)
    message = str(refused.value)
    assert path.name in message
    assert message.isprintable()
    assert len(message) < 1000
    return message


def point_outside(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def make_external(location: str) -> TensorProto:
    tensor = helper.make_tensor("secret", TensorProto.FLOAT, [1], [0.0])
    tensor.ClearField("float_data")
    point_outside(tensor, location)
    return tensor


def make_branch(node: onnx.NodeProto) -> onnx.NodeProto:
    graph = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)])
    return helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)


def make_sparse(values: TensorProto, dims: list[int]) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(
        values=values, indices=helper.make_tensor("i", TensorProto.INT64, [1], [0]), dims=dims
    )


def add_node(*arguments: str, **attributes: object) -> Change:
    return lambda model: model.graph.node.append(helper.make_node(*arguments, ["c"], ["x"], **attributes))


def nest(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["c"], ["x"])
    for _ in range(30):
        node = helper.make_node("Loop", ["n", "c"], ["y"], body=helper.make_graph([node], "body", [], []))
    model.graph.node.append(node)


UNSAFE: dict[str, tuple[Change, str]] = {
    "weights above the folder": (
        lambda model: point_outside(model.graph.initializer[0], "../../etc/passwd"),
        "lies in another file, '../../etc/passwd', outside the file's folder",
    ),
    "weights at an absolute path": (
        lambda model: point_outside(model.graph.initializer[0], "/etc/passwd"),
        "'/etc/passwd', outside the file's folder",
    ),
    "weights above the folder, on Windows": (
        lambda model: point_outside(model.graph.initializer[0], "..\\secret"),
        r"'..\secret', outside the file's folder",
    ),
    "weights at an absolute path, on Windows": (
        lambda model: point_outside(model.graph.initializer[0], "C:\\secret"),
        r"'C:\secret', outside the file's folder",
    ),
    "weights beside the file": (
        lambda model: point_outside(model.graph.initializer[0], "weights.bin"),
        "lies in another file, 'weights.bin'; that file was not touched",
    ),
    "a location that steers the terminal": (
        lambda model: point_outside(model.graph.initializer[0], "\x1b[2J\x9b1m\u202e/../../x"),
        r"'\x1b[2J\x9b1m\u202e/../../x', outside",
    ),
    "weights elsewhere without a location": (
        lambda model: setattr(model.graph.initializer[0], "data_location", TensorProto.EXTERNAL),
        "lies in another file, ''",
    ),
    "a constant elsewhere": (add_node("Constant", value=make_external("../x")), "tensor 'secret' lies in another"),
    "constants elsewhere": (add_node("Constant", values=[make_external("../x")]), "tensor 'secret' lies in another"),
    "a constant elsewhere, in a branch": (
        lambda model: model.graph.node.append(
            make_branch(helper.make_node("Constant", [], ["x"], value=make_external("../x")))
        ),
        "tensor 'secret' lies in another file, '../x', outside",
    ),
    "sparse weights elsewhere": (
        lambda model: model.graph.sparse_initializer.append(make_sparse(make_external("../x"), [4])),
        "tensor 'secret' lies in another file",
    ),
    "a sparse constant elsewhere": (
        add_node("Constant", sparse_value=make_sparse(make_external("../x"), [4])),
        "tensor 'secret' lies in another file",
    ),
    "sparse weights that fill the memory": (
        lambda model: model.graph.sparse_initializer.append(
            make_sparse(helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]), [2**20, 2**20])
        ),
        "a sparse tensor would have 1,099,511,627,776 values",
    ),
    "an operator that is not of the standard": (
        add_node("FusedConv", domain="com.microsoft"),
        "its operator 'FusedConv' is of the domain 'com.microsoft'; only standard ONNX operators are run",
    ),
    "an operator that is not of the standard, in a branch": (
        lambda model: model.graph.node.append(
            make_branch(helper.make_node("Run", [], ["x"], domain="evil\x1b]0;\x07"))
        ),
        r"its operator 'Run' is of the domain 'evil\x1b]0;\x07'",
    ),
    "a loop": (
        lambda model: model.graph.node.append(
            helper.make_node("Loop", ["n", "c"], ["y"], body=helper.make_graph([], "body", [], []))
        ),
        "its operator 'Loop' may repeat without end",
    ),
    "a loop in a branch": (
        lambda model: model.graph.node.append(make_branch(helper.make_node("Scan", [], ["x"]))),
        "its operator 'Scan' may repeat without end",
    ),
    "functions": (
        lambda model: model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], [], [])),
        "it has functions",
    ),
    "training information": (lambda model: model.training_info.add(), "it has training info"),
    "graphs without end": (nest, "more than 20 deep"),
    "a book of metadata": (
        lambda model: model.metadata_props.add(key="book", value="x" * 2**20),
        "at most 1,048,576 are read",
    ),
}


@pytest.mark.parametrize(("change", "words"), UNSAFE.values(), ids=UNSAFE)
def test_a_file_that_is_not_safe_is_not_opened(file: Path, tmp_path: Path, change: Change, words: str) -> None:
    path = spoil(file, tmp_path, change)
    assert words in refuse(path)
    with pytest.raises(ModelError, match="was not opened"):
        open_file(path)


def set_dims(model: onnx.ModelProto, dims: list[int]) -> None:
    model.graph.initializer[0].ClearField("dims")
    model.graph.initializer[0].dims.extend(dims)


DAMAGED: dict[str, tuple[Change, str]] = {
    "more weights declared than stored": (lambda model: set_dims(model, [2**40, 2**40]), "are declared"),
    "fewer weights declared than stored": (lambda model: set_dims(model, [0]), "values where 0 are declared"),
    "a negative dimension": (lambda model: set_dims(model, [-1, -1]), "has a negative dimension"),
    "too many dimensions": (lambda model: set_dims(model, [2**60] * 1000), "more than 16"),
    "an element type that no network has": (
        lambda model: setattr(model.graph.initializer[0], "data_type", 99),
        "is of element type 99",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "it has no graph or no opset"),
    "no opset": (lambda model: model.ClearField("opset_import"), "it has no graph or no opset"),
}


@pytest.mark.parametrize(("change", "words"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_not_opened(file: Path, tmp_path: Path, change: Change, words: str) -> None:
    message = refuse(spoil(file, tmp_path, change))
    assert "is not an ONNX file that can be run" in message
    assert words in message


def declare(which: str, name: str, element_type: int, shape: list[int | str]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        getattr(model.graph, which)[0].CopyFrom(helper.make_tensor_value_info(name, element_type, shape))

    return change


INTERFACES: dict[str, tuple[Change, str]] = {
    "another side": (declare("input", "image", TensorProto.UINT8, ["batch", 64, 64, 3]), "[batch, 64, 64, 3], but"),
    "an absurd side": (declare("input", "image", TensorProto.UINT8, ["batch", 2**40, 32, 3]), "[batch, 1099511627776,"),
    "one channel": (declare("input", "image", TensorProto.UINT8, ["batch", 32, 32, 1]), "[batch, 32, 32, 1], but"),
    "a fixed batch": (declare("input", "image", TensorProto.UINT8, [1, 32, 32, 3]), "[1, 32, 32, 3], but"),
    "floats": (declare("input", "image", TensorProto.FLOAT, ["batch", 32, 32, 3]), "image float32 [batch"),
    "another name": (declare("input", "pixels", TensorProto.UINT8, ["batch", 32, 32, 3]), "its input is pixels uint8"),
    "two inputs": (
        lambda model: model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])),
        "its input is image uint8 [batch, height, width, 3] and b float32 [1], but",
    ),
    "no input": (lambda model: model.graph.ClearField("input"), "its input is none, but"),
    "two outputs": (
        lambda model: model.graph.output.append(helper.make_tensor_value_info("\x1b[0m", TensorProto.FLOAT, [1])),
        r"and \x1b[0m float32 [1], but by its metadata it would be embedding float32 [batch, 64]",
    ),
    "another dimension": (declare("output", "embedding", TensorProto.FLOAT, ["batch", 65]), "[batch, 65], but"),
    "vectors of half precision": (declare("output", "embedding", TensorProto.FLOAT16, ["batch", 64]), "float16"),
    "no shape": (declare("output", "embedding", TensorProto.FLOAT, None), "embedding float32 [], but"),
}


@pytest.mark.parametrize(("change", "words"), INTERFACES.values(), ids=INTERFACES)
def test_a_file_that_takes_or_gives_something_else_is_not_opened(
    file: Path, tmp_path: Path, change: Change, words: str
) -> None:
    assert words in refuse(spoil(file, tmp_path, change))


def describe(**texts: str | None) -> Change:
    def change(model: onnx.ModelProto) -> None:
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        metadata |= {f"indistill.{key}": text for key, text in texts.items() if text is not None}
        for key, text in texts.items():
            if text is None:
                del metadata[f"indistill.{key}"]
        helper.set_model_props(model, metadata)

    return change


def prepare(**values: object) -> Change:
    return describe(preprocessing=json.dumps(PREPROCESSING.to_dict() | values))


METADATA: dict[str, tuple[Change, str]] = {
    "none": (lambda model: model.ClearField("metadata_props"), "indistill.embedding_dim"),
    "no preprocessing": (describe(preprocessing=None), "indistill.preprocessing"),
    "no input": (describe(input=None), "indistill.input"),
    "another input": (
        describe(input='{"layout": "NCHW", "dtype": "uint8"}'),
        "input is {'layout': 'NCHW', 'dtype': 'uint8'}",
    ),
    "input of lists": (describe(input='{"layout": [1], "dtype": {}}'), "input is {'layout': [1], 'dtype': {}}"),
    "an enormous side": (prepare(image_size=10**9), "at most 89,478,485 pixels"),
    "a side of a thousand digits": (prepare(image_size=10**1000), "at most 89,478,485 pixels"),
    "a side of five thousand digits": (
        describe(preprocessing='{"image_size": 1' + "0" * 5000 + "}"),
        "does not describe its preprocessing",
    ),
    "no side": (prepare(image_size=0), "image_size >= 1"),
    "a side in words": (prepare(image_size="large"), "does not describe its preprocessing"),
    "a broken side": (prepare(image_size=31.5), "does not describe its preprocessing"),
    "nearly no crop": (prepare(crop=1e-300), "at most 89,478,485 pixels"),
    "a crop that is no number": (prepare(crop=float("nan")), "NaN is no finite number"),
    "a negative deviation": (prepare(std=[0.2, -0.2, 0.2]), "positive std"),
    "a deviation that is no number": (prepare(std=[0.2, float("nan"), 0.2]), "NaN is no finite number"),
    "an infinite mean": (
        describe(preprocessing='{"image_size": 32, "crop": 1, "mean": [1e999, 0, 0], "std": [1, 1, 1]}'),
        "1e999 is no finite number",
    ),
    "a mean beyond all floats": (prepare(mean=[10**400, 0, 0]), "too large to convert to float"),
    "two means": (prepare(mean=[0.5, 0.5]), "does not describe its preprocessing"),
    "a mean in words": (prepare(mean="abc"), "does not describe its preprocessing"),
    "a list of preprocessing": (describe(preprocessing="[]"), "preprocessing is no JSON object"),
    "no JSON": (describe(preprocessing="{"), "does not describe its preprocessing"),
    "brackets without end": (describe(verification="[" * 200_000), "verification is nested too deep"),
    "an enormous dimension": (describe(embedding_dim="1000000000"), "at most 65536"),
    "a dimension in words": (describe(embedding_dim="\x1b[31m64"), r"\x1b[31m64"),
    "a name that steers the terminal": (describe(name="\x1b]0;evil\x07"), "name has characters that are no text"),
    "a teacher of two lines": (describe(teacher="a\nindistill: done"), "teacher has characters that are no text"),
    "a precision from right to left": (describe(precision="\u202e23pf"), "precision has characters that are no text"),
}


@pytest.mark.parametrize(("change", "words"), METADATA.values(), ids=METADATA)
def test_metadata_that_is_missing_or_absurd_is_refused(file: Path, tmp_path: Path, change: Change, words: str) -> None:
    assert words in refuse(spoil(file, tmp_path, change))


def make_model(file: Path, given: onnx.ValueInfoProto, described: dict[str, str]) -> onnx.ModelProto:
    """Returns a network that gives the channels' means, with the metadata of a file of ours."""
    axes = [2, 3] if described["layout"] == "NCHW" else [1, 2]
    nodes = [
        helper.make_node("Cast", [given.name], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["embedding"], keepdims=0, domain="ai.onnx"),
    ]
    taken = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])
    constants = [helper.make_tensor("axes", TensorProto.INT64, [2], axes)]
    graph = helper.make_graph(nodes, "means", [given], [taken], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {entry.key: entry.value for entry in onnx.load(file).metadata_props})
    describe(embedding_dim="3", input=json.dumps(described))(model)
    seal(model)
    return model


@pytest.mark.parametrize(
    ("name", "element_type", "shape", "described"),
    [
        ("image", TensorProto.UINT8, ["batch", 32, 32, 3], PIXELS),
        ("image", TensorProto.UINT8, SYMBOLIC, PIXELS),
        ("pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32], NORMALISED),
    ],
    ids=["pixels of one size", "pixels of any size", "tensor"],
)
def test_pixels_and_tensors_are_possible_inputs(
    file: Path, tmp_path: Path, name: str, element_type: int, shape: list[int | str], described: dict[str, str]
) -> None:
    given = helper.make_tensor_value_info(name, element_type, shape)
    path = tmp_path / "means.onnx"
    onnx.save(make_model(file, given, described), path)
    EmbeddingSession(path)
    other = {"NHWC": NORMALISED, "NCHW": PIXELS}
    onnx.save(make_model(file, given, other[described["layout"]]), path)
    assert "by its metadata it would be" in refuse(path)


def test_a_file_that_gives_other_shapes_than_it_declares_is_refused_when_it_runs(file: Path, tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("image", TensorProto.UINT8, SYMBOLIC)
    model = make_model(file, given, PIXELS)
    model.graph.initializer[0].CopyFrom(helper.make_tensor("axes", TensorProto.INT64, [2], [0, 3]))
    seal(model)
    onnx.save(model, tmp_path / "means.onnx")
    session = EmbeddingSession(tmp_path / "means.onnx")
    with pytest.raises(ModelError, match=r"means\.onnx (gives|cannot be run)"):
        session.embed_pixels(np.zeros((2, 32, 32, 3), dtype=np.uint8))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in refuse(tmp_path / "none.onnx")
    assert "is a folder, and an ONNX file is needed: there is none in it" in refuse(tmp_path)


def test_a_file_above_the_limit_of_protobuf_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.onnx").open("wb") as stream:
        stream.truncate(2**31)  # a hole, which takes no space
    assert "2,147,483,648 bytes; an ONNX file has at most 2,147,483,647" in refuse(tmp_path / "huge.onnx")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (b"this is a note\n", "is not an ONNX file that can be run"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not an ONNX file that can be run"),
        (bytes(1000), "a field of number 0"),
        (b"\xff" * 1000, "a number of more than 64 bits"),
        (b"\x08\x01" * 5, "it has no graph or no opset"),
        (b"\x3a\x00" * 2 + b"\x42\x00", "its graph is there 2 times"),
        (b"\x38\x00\x42\x00", "its graph is a number"),
        (b"\x08\x01" * 2_000_001, "it has more than 2,000,000 fields"),
    ],
    ids=["nothing", "text", "an image", "zeros", "ones", "half of a model", "two graphs", "a number", "endless"],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "other.onnx").write_bytes(data)
    assert words in refuse(tmp_path / "other.onnx")


def test_a_file_cut_off_anywhere_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    length = len(whole)
    for size in [*range(1, length, length // 60), *range(length - 900, length, 7)]:
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        refuse(tmp_path / "cut.onnx")


FLIP = """
import random, sys
from pathlib import Path
import numpy as np
from indistill.errors import ModelError
from indistill.export.session import EmbeddingSession
whole, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
generator, pixels = random.Random(0), np.zeros((2, 32, 32, 3), dtype=np.uint8)
opened = refused = 0
for trial in range(300):
    data = bytearray(whole)
    # The names, types and shapes stand at both ends, weights between them.
    place = generator.choice([generator.randrange(2500), generator.randrange(len(data)), -generator.randrange(1, 2500)])
    data[place] ^= 1 << generator.randrange(8)
    path.write_bytes(data)
    try:
        assert EmbeddingSession(path, 1).embed_pixels(pixels).shape == (2, 64)
        opened += 1
    except ModelError as error:
        assert str(error).isprintable(), repr(str(error))
        refused += 1
print(opened, refused)
"""


def test_a_flipped_bit_never_ends_the_process_or_gives_a_traceback(file: Path, tmp_path: Path) -> None:
    result = run_process(file, tmp_path / "flipped.onnx", code=FLIP)
    assert result.code == 0, result.err
    assert result.err == ""
    opened, refused = map(int, result.out.split())
    assert opened > 0  # names alone, as that of the program that wrote the file
    assert refused > 200


def test_a_weight_that_has_changed_is_noticed(file: Path, tmp_path: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "other.onnx").write_bytes(data)
    assert examine_file(tmp_path / "other.onnx").elements == examine_file(file).elements
    assert "its graph or weights are not those that were written" in refuse(tmp_path / "other.onnx")


def test_the_numbers_of_fields_are_those_of_onnx() -> None:
    schemas = {
        onnx.ModelProto: wire.MODEL,
        onnx.GraphProto: wire.GRAPH,
        onnx.NodeProto: wire.NODE,
        onnx.AttributeProto: wire.ATTRIBUTE,
        onnx.TensorProto: wire.TENSOR,
        onnx.SparseTensorProto: wire.SPARSE_TENSOR,
        onnx.ValueInfoProto: wire.VALUE_INFO,
        onnx.TypeProto: wire.TYPE,
        onnx.TypeProto.Tensor: wire.TENSOR_TYPE,
        onnx.TensorShapeProto: wire.SHAPE,
        onnx.TensorShapeProto.Dimension: wire.DIMENSION,
        onnx.StringStringEntryProto: wire.ENTRY,
        onnx.OperatorSetIdProto: wire.OPERATOR_SET,
    }
    for message, schema in schemas.items():
        fields = message.DESCRIPTOR.fields_by_name
        assert {name: fields[name].number for name in schema} == dict(schema)


def test_every_field_that_may_hold_a_tensor_or_a_graph_is_looked_at() -> None:
    looked_at = {"GraphProto": wire.GRAPH, "AttributeProto": wire.ATTRIBUTE, "SparseTensorProto": wire.SPARSE_TENSOR}
    looked_at |= {"ModelProto": wire.MODEL}
    held = {"TensorProto", "SparseTensorProto", "GraphProto", "NodeProto", "FunctionProto", "TrainingInfoProto"}
    refused_whole = {"FunctionProto", "TrainingInfoProto"}
    for name, message in onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name.items():
        if name in refused_whole:
            continue
        for each in message.fields:
            if each.message_type is not None and each.message_type.name in held:
                assert each.name in looked_at[name], f"{name}.{each.name}"


@pytest.mark.parametrize("element_type", sorted(opening.ELEMENT_TYPES))
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [[5], [], [0], [2, 3]], ids=str)
def test_values_of_every_type_are_counted_as_onnx_stores_them(element_type: int, raw: bool, shape: list[int]) -> None:
    values = np.ones(shape).astype(helper.tensor_dtype_to_np_dtype(element_type))
    if raw:
        tensor = onnx.numpy_helper.from_array(values, "w")
    else:
        tensor = helper.make_tensor("w", element_type, shape, values.ravel())
        assert not tensor.raw_data
    data = memoryview(tensor.SerializeToString())
    name, count = opening._examine_tensor(wire.Message(data, wire.TENSOR, wire.make_budget()))
    spelled = TensorProto.DataType.Name(element_type).lower()
    assert name == {"float": "float32"}.get(spelled, spelled)
    assert count == values.size


def test_a_file_of_ours_is_read_as_onnx_reads_it(file: Path) -> None:
    found, expected = examine_file(file), onnx.load(file)
    assert found.size_bytes == file.stat().st_size
    assert (found.opset, found.ir_version) == (expected.opset_import[0].version, expected.ir_version)
    assert found.operators == Counter(node.op_type for node in expected.graph.node)
    assert sum(found.elements.values()) == sum(int(np.prod(each.dims)) for each in expected.graph.initializer)
    assert found.metadata == {entry.key: entry.value for entry in expected.metadata_props}
    assert [str(each) for each in (*found.inputs, *found.outputs)] == [
        "image uint8 [batch, height, width, 3]",
        "embedding float32 [batch, 64]",
    ]
