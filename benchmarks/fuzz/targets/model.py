"""ONNX files: bytes changed, and what stands in them: nodes, shapes, weights elsewhere, cycles, graphs in graphs."""

import hashlib
import random
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper

from benchmarks.fuzz.damage import ODD_NUMBERS, ODD_TEXTS, damage, damage_json, make_odd, require_line
from benchmarks.fuzz.originals import SIDE, provide
from indistill.errors import InputError
from indistill.export.artefact import GRAPH_SHA256
from indistill.export.opening import open_file
from indistill.export.session import EmbeddingSession

OPERATORS = (
    "Expand", "Tile", "ConstantOfShape", "Range", "Resize", "Pad", "Loop", "If", "Scan", "RandomUniform", "Reshape",
    "Gather", "Conv", "MatMul", "Concat", "Identity", "NonMaxSuppression", "StringNormalizer", "Einsum",
)  # fmt: skip


def prepare() -> None:
    """Makes the file that is damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Opens a changed file, as every command does, and embeds with it."""
    path = folder / "model.onnx"
    path.write_bytes(_change(random))
    for use in (open_file, _embed):
        try:
            use(path)
        except InputError as error:
            require_line(error)


def _embed(path: Path) -> None:
    session = EmbeddingSession(path, 1)
    pixels = np.zeros((2, SIDE, SIDE, 3), dtype=np.uint8)
    vectors = session.embed_pixels(pixels) if session.artefact.preprocessing.image_size == SIDE else None
    assert vectors is None or vectors.shape == (2, session.artefact.embedding_dim)


@cache
def _read_original() -> bytes:
    return provide("student.onnx").read_bytes()


def _change(generator: random.Random) -> bytes:
    if generator.random() < 0.25:
        return damage(_read_original(), generator)
    model = onnx.ModelProto.FromString(_read_original())
    for _ in range(generator.randint(1, 2)):
        if not (model.metadata_props and model.graph.node and model.graph.initializer):
            break  # cleared by the change before
        generator.choice((_change_field, _change_metadata, _change_node, _change_tensor, _add_node, _nest))(
            model, generator
        )
    if generator.random() < 0.9:
        for entry in model.metadata_props:
            if entry.key == GRAPH_SHA256:
                entry.value = hashlib.sha256(model.graph.SerializeToString()).hexdigest()
    content = model.SerializeToString()
    return damage(content, generator) if generator.random() < 0.1 else content


def _change_field(model: onnx.ModelProto, generator: random.Random) -> None:
    """Changes a field at a random place of the tree of messages."""
    message: Message = model
    for _ in range(generator.randint(1, 8)):
        fields = message.ListFields()
        if not fields:
            return
        field, value = generator.choice(fields)
        inner = list(value) if field.is_repeated and field.message_type else [value] if field.message_type else []
        if inner and generator.random() < 0.9:
            message = generator.choice(inner)
            continue
        if field.message_type or generator.random() < 0.2:
            message.ClearField(field.name)
            return
        odd = make_odd(generator)
        try:
            if field.is_repeated:
                value.append(odd)
            else:
                setattr(message, field.name, odd if not isinstance(value, bytes) else damage(value, generator))
        except (TypeError, ValueError, UnicodeError):
            message.ClearField(field.name)
        return


def _change_metadata(model: onnx.ModelProto, generator: random.Random) -> None:
    entry = generator.choice(model.metadata_props)
    try:
        entry.value = damage_json(entry.value, generator)
    except ValueError:
        entry.value = generator.choice(ODD_TEXTS).replace("\ud800", "?")


def _change_node(model: onnx.ModelProto, generator: random.Random) -> None:
    node, other = generator.choice(model.graph.node), generator.choice(model.graph.node)
    match generator.randrange(6):
        case 0:
            node.op_type = generator.choice(OPERATORS)
        case 1 if node.input:  # mostly a cycle
            node.input[generator.randrange(len(node.input))] = other.output[0]
        case 2:
            node.output[0] = other.output[0]
        case 3:
            model.graph.node.remove(node)
        case 4 if node.attribute:
            attribute = generator.choice(node.attribute)
            if attribute.ints:
                attribute.ints[0] = _limit(generator)
            attribute.i = _limit(generator)
        case _:
            node.domain = generator.choice(("com.microsoft", "ai.onnx", "x"))


def _change_tensor(model: onnx.ModelProto, generator: random.Random) -> None:
    tensor = generator.choice(model.graph.initializer)
    match generator.randrange(6):
        case 0:
            tensor.dims[:] = [_limit(generator) for _ in range(generator.randint(0, 4))]
        case 1:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            location = generator.choice(("../x", "/etc/passwd", "model.onnx", "C:\\x", "*", ""))
            tensor.external_data.add(key="location", value=location)
            tensor.external_data.add(key="length", value=str(generator.choice(ODD_NUMBERS)))
        case 2:
            tensor.data_type = generator.randrange(30)
        case 3 if tensor.data_type == TensorProto.INT64:  # shapes and axes stand in such
            values = [_limit(generator) for _ in range(max(1, len(tensor.raw_data) // 8))]
            tensor.raw_data = np.array(values, dtype="<i8").tobytes()
        case 4:
            model.graph.initializer.add().CopyFrom(tensor)
        case _:
            tensor.raw_data = damage(tensor.raw_data, generator)


def _add_node(model: onnx.ModelProto, generator: random.Random) -> None:
    """Puts a node behind the graph whose output is enormous, endless or odd, in the place of the embedding."""
    graph = model.graph
    last = next((node for node in graph.node if "embedding" in node.output), graph.node[-1])
    last.output[0] = "before"
    many = [generator.choice((2, 64, 10**5, 2**31, 2**40)) for _ in range(2)]
    constants = {"shape": many, "axis": [0], "count": [2**62], "true": [1]}
    for name, values in constants.items():
        graph.initializer.append(helper.make_tensor(f"odd_{name}", TensorProto.INT64, [len(values)], values))
    start = helper.make_node("Cast", ["odd_true"], ["odd_condition"], to=TensorProto.BOOL)
    match generator.randrange(5):
        case 0:
            nodes = [helper.make_node("Expand", ["before", "odd_shape"], ["embedding"])]
        case 1:
            nodes = [helper.make_node("Tile", ["before", "odd_shape"], ["embedding"])]
        case 2:
            nodes = [helper.make_node("ConstantOfShape", ["odd_shape"], ["embedding"])]
        case 3:
            given = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("c", 9))]
            body_nodes = [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["x"], ["x2"])]
            state = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
            taken = [helper.make_tensor_value_info("c2", 9, []), helper.make_tensor_value_info("x2", 1, None)]
            body = helper.make_graph(body_nodes, "body", [*given, state], taken)
            nodes = [helper.make_node("Loop", ["odd_count", "odd_condition", "before"], ["embedding"], body=body)]
        case _:
            nodes = [helper.make_node("Identity", ["embedding"], ["embedding"])]
    graph.node.extend([start, *nodes])


def _nest(model: onnx.ModelProto, generator: random.Random) -> None:
    graph = helper.make_graph([], "leaf", [], [])
    for _ in range(generator.choice((3, 18, 28))):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    model.graph.node.add().CopyFrom(helper.make_node("If", ["x"], ["y"], then_branch=graph))


def _limit(generator: random.Random) -> int:
    return max(-(2**63), min(2**63 - 1, generator.choice(ODD_NUMBERS)))
