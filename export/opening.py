"""Looks at an ONNX file before ONNX Runtime runs it: whether it is whole, safe, and takes and gives what it says.

Needs neither torch nor onnx. A file is data from anyone: what is read here reaches no other file, and its texts
are made harmless before they are shown.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from indistill.errors import ModelError, escape_text
from indistill.export.artefact import (
    GRAPH_SHA256,
    INPUT_NAMES,
    OUTPUT_NAME,
    PREFIX,
    Artefact,
    read_artefact,
)
from indistill.export.wire import (
    ATTRIBUTE,
    DIMENSION,
    ENTRY,
    GRAPH,
    MODEL,
    NODE,
    OPERATOR_SET,
    SHAPE,
    SPARSE_TENSOR,
    TENSOR,
    TENSOR_TYPE,
    TYPE,
    VALUE_INFO,
    Message,
    make_budget,
)

MAX_BYTES = 2**31 - 1  # of any protobuf message
MAX_METADATA_BYTES = 2**20
MAX_DIMENSIONS = 16
MAX_DEPTH = 20  # of graphs in graphs
ENDLESS = ("Loop", "Scan", "SequenceMap")
DOMAINS = ("", "ai.onnx")  # two names of the standard operators; int8 in QDQ form needs no other

# Name and bits of the element types that a network can have; text and complex numbers are not among them.
ELEMENT_TYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("double", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
}
_CONTINUED = bytes(range(128, 256))  # bytes of a number after which it goes on


@dataclass(frozen=True)
class TensorSpec:
    """A declared input or output: its name, element type, and shape with a text for each symbolic dimension."""

    name: str
    element_type: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        shape = ", ".join(escape_text(str(size)) for size in self.shape[:8]) + ", ..." * (len(self.shape) > 8)
        return f"{escape_text(self.name)} {self.element_type} [{shape}]"


@dataclass(frozen=True)
class ModelFile:
    """What an ONNX file is.

    Attributes:
        size_bytes: of the file.
        sha256: of the file.
        graph_sha256: of the graph in it.
        ir_version: of the format.
        opset: of the standard operators.
        producer: the program that wrote the graph, and its version.
        inputs: declared; without those that have a value in the file.
        outputs: declared.
        operators: how many nodes of each type, in graphs within nodes too.
        elements: how many values its initialisers have, by element type.
        metadata: its `metadata_props` as they are: text from anyone.
    """

    size_bytes: int
    sha256: str
    graph_sha256: str
    ir_version: int
    opset: int
    producer: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    elements: dict[str, int]
    metadata: dict[str, str]


@dataclass
class _Tally:
    operators: Counter[str] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)


def examine_file(path: Path) -> ModelFile:
    """Returns what an ONNX file is, if it is whole and safe to run.

    Refused is what a file of ours never has: weights in other files, operators that are not of the standard, loops,
    functions, training information, weights that are shorter or longer than declared.

    Args:
        path: the file.

    Raises:
        ModelError: there is no such file, it is damaged, or it is not safe.
    """
    data = _read_file(path)
    try:
        model = Message(memoryview(data), MODEL, make_budget())
        if not model.has("graph") or not model.has("opset_import"):
            raise ValueError("it has no graph or no opset")
        tally = _Tally()
        for part in ("functions", "training_info"):
            if model.has(part):
                raise ModelError(f"it has {part.replace('_', ' ')}, which a file of 'indistill export' has not")
        graph = model.message("graph", GRAPH)
        _examine_graph(graph, tally, depth=0)
        opsets = {
            entry.text("domain"): entry.integer("version") for entry in model.messages("opset_import", OPERATOR_SET)
        }
        producer = f"{model.text('producer_name')} {model.text('producer_version')}".strip()
        return ModelFile(
            len(data),
            hashlib.sha256(data).hexdigest(),
            hashlib.sha256(model.chunks("graph")[0]).hexdigest(),
            model.integer("ir_version"),
            max(opsets.get(domain, 0) for domain in DOMAINS),
            producer,
            _read_inputs(graph),
            tuple(_read_spec(value) for value in graph.messages("output", VALUE_INFO)),
            dict(tally.operators.most_common()),
            dict(tally.elements.most_common()),
            _read_metadata(model),
        )
    except ValueError as error:
        raise ModelError(
            f"model: {path} is not an ONNX file that can be run ({error}): copy it again, or write it again by "
            "'indistill export RUN --onnx'"
        ) from error
    except ModelError as error:
        raise ModelError(f"model: {path} was not opened: {error}") from error


def require_interface(model: ModelFile, artefact: Artefact, path: Path) -> None:
    """Raises ModelError unless a file takes images and gives vectors as its metadata says, and its graph is unchanged.

    The graph's hash finds what is damaged by chance, weights too. It is no signature: anyone may write another.

    Args:
        model: what the file is.
        artefact: what it says of itself.
        path: the file, for the message.
    """
    side = artefact.preprocessing.image_size
    name = INPUT_NAMES[artefact.input]
    if artefact.input == "tensor":
        given, free = TensorSpec(name, "float32", ("batch", 3, side, side)), {0}
    else:
        given, free = TensorSpec(name, "uint8", ("batch", side, side, 3)), {0, 1, 2}
    taken = TensorSpec(OUTPUT_NAME, "float32", ("batch", artefact.embedding_dim))
    for kind, specs, expected, symbolic in (
        ("input", model.inputs, given, free),
        ("output", model.outputs, taken, {0}),
    ):
        if len(specs) != 1 or not _agrees(specs[0], expected, symbolic):
            raise ModelError(
                f"model: {path} was not opened: its {kind} is {_show(specs)}, but by its metadata it would be "
                f"{_show((expected,))}; write it again by 'indistill export RUN --onnx'"
            )
    if model.metadata.get(GRAPH_SHA256, model.graph_sha256) != model.graph_sha256:
        raise ModelError(
            f"model: {path} was not opened: its graph or weights are not those that were written (SHA-256 "
            f"{model.graph_sha256[:12]}...): copy it again, or write it again by 'indistill export RUN --onnx'"
        )


def open_file(path: Path) -> tuple[ModelFile, Artefact | None]:
    """Returns what an ONNX file is and what it says of itself, None where `indistill export` did not write it.

    Raises:
        ModelError: there is no such file, it is damaged or not safe, or not what its metadata says.
    """
    model = examine_file(path)
    if not any(key.startswith(PREFIX) for key in model.metadata):
        return model, None
    artefact = read_artefact(model.metadata, path.name)
    require_interface(model, artefact, path)
    return model, artefact


def _read_file(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError(f"model: {path} is a folder, and an ONNX file is needed: {_name_files(path)}")
        if not path.is_file():
            raise ModelError(f"model: there is no file {path}")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ModelError(f"model: {path} has {size:,} bytes; an ONNX file has at most {MAX_BYTES:,}")
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"model: {path} cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"model: {path} is not an ONNX file that can be run (it is empty): copy or write it again")
    return data


def _name_files(folder: Path) -> str:
    """Returns which ONNX files lie in a folder, or how one is written."""
    found = sorted(str(file) for file in folder.glob("*.onnx"))
    if found:
        return f"in it lie {', '.join(found[:4])}" if len(found) > 1 else f"in it lies {found[0]}"
    if (folder / "config.yaml").is_file():
        return f"'indistill export {folder} --onnx' writes one"
    return "there is none in it"


def _examine_graph(graph: Message, tally: _Tally, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ModelError(f"it has graphs within graphs, more than {MAX_DEPTH} deep")
    for node in graph.messages("node", NODE):
        operator, domain = node.text("op_type"), node.text("domain")
        if domain not in DOMAINS:
            raise ModelError(
                f"its operator '{escape_text(operator)}' is of the domain '{escape_text(domain)}'; only standard ONNX "
                "operators are run: write it by 'indistill export RUN --onnx'"
            )
        tally.operators[operator] += 1
        for attribute in node.messages("attribute", ATTRIBUTE):
            if attribute.is_empty():  # a number, as in nearly all
                continue
            for name in ("t", "tensors"):
                for tensor in attribute.messages(name, TENSOR):
                    _examine_tensor(tensor)
            for name in ("sparse_tensor", "sparse_tensors"):
                for sparse in attribute.messages(name, SPARSE_TENSOR):
                    _examine_sparse(sparse)
            for name in ("g", "graphs"):
                for inner in attribute.messages(name, GRAPH):
                    _examine_graph(inner, tally, depth + 1)
        if operator in ENDLESS:
            raise ModelError(f"its operator '{operator}' may repeat without end; no file of 'indistill export' has it")
    for tensor in graph.messages("initializer", TENSOR):
        element_type, count = _examine_tensor(tensor)
        tally.elements[element_type] += count
    for sparse in graph.messages("sparse_initializer", SPARSE_TENSOR):
        element_type, count = _examine_sparse(sparse)
        tally.elements[element_type] += count


def _examine_sparse(sparse: Message) -> tuple[str, int]:
    """Returns element type and number of the values; ONNX Runtime makes a dense tensor of them, which is bounded."""
    size = _count_elements(sparse.integers("dims"), "a sparse tensor")
    if size > MAX_BYTES:
        raise ModelError(f"a sparse tensor would have {size:,} values")
    _examine_tensor(sparse.message("indices", TENSOR))
    return _examine_tensor(sparse.message("values", TENSOR))


def _examine_tensor(tensor: Message) -> tuple[str, int]:
    """Returns element type and number of elements of a tensor whose values are all in the file."""
    name = f"its tensor '{escape_text(tensor.text('name'))}'"
    if tensor.has("external_data") or tensor.integer("data_location"):
        entries = {entry.text("key"): entry.text("value") for entry in tensor.messages("external_data", ENTRY)}
        location = entries.get("location", "")
        outside = ", outside the file's folder" if _leads_outside(location) else ""
        raise ModelError(
            f"{name} lies in another file, '{escape_text(location)}'{outside}; that file was not touched: "
            "a model must be one file, as 'indistill export RUN --onnx' writes it"
        )
    if tensor.integer("data_type") not in ELEMENT_TYPES:
        raise ValueError(f"{name} is of element type {tensor.integer('data_type')}")
    element_type, bits = ELEMENT_TYPES[tensor.integer("data_type")]
    count = _count_elements(tensor.integers("dims"), name)
    stored = _count_bits(tensor, bits)
    if not count * bits <= stored < count * bits + 8:  # values of four bits are padded to a byte
        raise ValueError(f"{name} has {stored // bits:,} values where {count:,} are declared")
    return element_type, count


def _count_bits(tensor: Message, bits: int) -> int:
    """Returns how many bits of values a tensor has, in whichever field they are."""
    raw = sum(len(chunk) for chunk in tensor.chunks("raw_data"))
    numbers = _count_numbers(tensor, "int32_data") * max(bits, 8)
    numbers += (_count_numbers(tensor, "int64_data") + _count_numbers(tensor, "uint64_data")) * bits
    plain = sum(len(chunk) for name in ("float_data", "double_data") for chunk in tensor.chunks(name))
    return 8 * (raw + plain) + numbers


def _count_numbers(tensor: Message, name: str) -> int:
    return sum(len(bytes(chunk).translate(None, _CONTINUED)) for chunk in tensor.chunks(name))


def _count_elements(dims: list[int], name: str) -> int:
    if len(dims) > MAX_DIMENSIONS or any(size < 0 for size in dims):
        raise ValueError(f"{name} has a negative dimension, or more than {MAX_DIMENSIONS}")
    return math.prod(dims)


def _leads_outside(location: str) -> bool:
    """Returns whether a location is not below the folder of its file, by the rules of POSIX or Windows."""
    paths = PurePosixPath(location), PureWindowsPath(location)
    return any(path.is_absolute() or path.drive or path.root or ".." in path.parts for path in paths)


def _read_inputs(graph: Message) -> tuple[TensorSpec, ...]:
    valued = {tensor.text("name") for tensor in graph.messages("initializer", TENSOR)}
    specs = (_read_spec(value) for value in graph.messages("input", VALUE_INFO))
    return tuple(spec for spec in specs if spec.name not in valued)


def _read_spec(value: Message) -> TensorSpec:
    tensor = value.message("type", TYPE).message("tensor_type", TENSOR_TYPE)
    element_type = ELEMENT_TYPES.get(tensor.integer("elem_type"), ("unknown", 0))[0]
    dimensions = tensor.message("shape", SHAPE).messages("dim", DIMENSION)
    shape = tuple(
        axis.integer("dim_value") if axis.has("dim_value") else axis.text("dim_param") or "?" for axis in dimensions
    )
    return TensorSpec(value.text("name"), element_type, shape)


def _read_metadata(model: Message) -> dict[str, str]:
    size = sum(len(chunk) for chunk in model.chunks("metadata_props"))
    if size > MAX_METADATA_BYTES:
        raise ModelError(f"its metadata has {size:,} bytes; at most {MAX_METADATA_BYTES:,} are read")
    return {entry.text("key"): entry.text("value") for entry in model.messages("metadata_props", ENTRY)}


def _agrees(spec: TensorSpec, expected: TensorSpec, symbolic: set[int]) -> bool:
    if (spec.name, spec.element_type, len(spec.shape)) != (expected.name, expected.element_type, len(expected.shape)):
        return False
    return isinstance(spec.shape[0], str) and all(
        found == wanted or (axis in symbolic and isinstance(found, str))
        for axis, (found, wanted) in enumerate(zip(spec.shape, expected.shape, strict=True))
    )


def _show(specs: Sequence[TensorSpec]) -> str:
    return " and ".join(map(str, specs[:3])) + " and more" * (len(specs) > 3) or "none"
