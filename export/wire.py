"""Reads the messages of an ONNX file without the package `onnx`, whose import takes as long as a search's model does.

A file is a message; a message is a sequence of fields, each with a number, a kind and a value; a value may be a message
again. Values are views of the file's bytes, so that weights are neither copied nor looked at. It is stricter than
protobuf: what no writer writes (a value of another kind than its field's, one that is there twice) counts as damage.

Reference: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Iterator, Mapping
from typing import cast

MAX_FIELDS = 2_000_000  # some seconds of reading; a network of a thousand nodes has about 30,000
Schema = Mapping[str, int]
# The fields that are looked at, by the numbers of onnx.proto.
MODEL: Schema = {
    "ir_version": 1,
    "producer_name": 2,
    "producer_version": 3,
    "graph": 7,
    "opset_import": 8,
    "metadata_props": 14,
    "training_info": 20,
    "functions": 25,
}
GRAPH: Schema = {"node": 1, "initializer": 5, "input": 11, "output": 12, "sparse_initializer": 15}
NODE: Schema = {"op_type": 4, "attribute": 5, "domain": 7}
ATTRIBUTE: Schema = {"t": 5, "g": 6, "tensors": 10, "graphs": 11, "sparse_tensor": 22, "sparse_tensors": 23}
TENSOR: Schema = {
    "dims": 1,
    "data_type": 2,
    "float_data": 4,
    "int32_data": 5,
    "int64_data": 7,
    "name": 8,
    "raw_data": 9,
    "double_data": 10,
    "uint64_data": 11,
    "external_data": 13,
    "data_location": 14,
}
SPARSE_TENSOR: Schema = {"values": 1, "indices": 2, "dims": 3}
VALUE_INFO: Schema = {"name": 1, "type": 2}
TYPE: Schema = {"tensor_type": 1}
TENSOR_TYPE: Schema = {"elem_type": 1, "shape": 2}
SHAPE: Schema = {"dim": 1}
DIMENSION: Schema = {"dim_value": 1, "dim_param": 2}
ENTRY: Schema = {"key": 1, "value": 2}
OPERATOR_SET: Schema = {"domain": 1, "version": 2}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def make_budget() -> Iterator[int]:
    """Returns what the messages of one file share, so that reading them all ends."""
    return iter(range(MAX_FIELDS))


class Message:
    """One message, its fields by name.

    Args:
        data: its bytes.
        schema: the numbers of its fields that may be asked for; others are passed over.
        budget: of the file, by `make_budget`.

    Raises:
        ValueError: the bytes are not those of a message; the text says why. So do all methods.
    """

    def __init__(self, data: memoryview, schema: Schema, budget: Iterator[int]) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        self._schema, self._budget = schema, budget
        wanted = schema.values()
        position, end = 0, len(data)
        while position < end:
            if next(budget, None) is None:
                raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
            tag, position = _read_varint(data, position)
            number, kind = tag >> 3, tag & 7
            value: int | memoryview
            if kind == _VARINT:
                value, position = _read_varint(data, position)
            else:
                if kind == _LENGTH:
                    size, position = _read_varint(data, position)
                elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
                    size = 8 if kind == _EIGHT_BYTES else 4
                else:
                    raise ValueError(f"a field of kind {kind}, which ONNX does not use")
                if size > end - position:
                    raise ValueError(f"{size - end + position:,} bytes are missing")
                value = data[position : position + size]
                position += size
            if number == 0:
                raise ValueError("a field of number 0")
            if number in wanted:
                self._fields.setdefault(number, []).append(value)

    def is_empty(self) -> bool:
        """Returns whether it has none of the fields that may be asked for."""
        return not self._fields

    def has(self, name: str) -> bool:
        """Returns whether a field is there at all."""
        return self._schema[name] in self._fields

    def integer(self, name: str) -> int:
        """Returns a signed 64-bit number; 0 where there is none."""
        value = self._one(name)
        if isinstance(value, memoryview):
            raise ValueError(f"its {name} is no number")
        return _sign(value or 0)

    def integers(self, name: str) -> list[int]:
        """Returns the signed 64-bit numbers of a repeated field, packed or not."""
        numbers = []
        for value in self._all(name):
            if isinstance(value, int):
                numbers.append(_sign(value))
                continue
            position = 0
            while position < len(value):
                if next(self._budget, None) is None:
                    raise ValueError(f"it has more than {MAX_FIELDS:,} fields")
                number, position = _read_varint(value, position)
                numbers.append(_sign(number))
        return numbers

    def chunks(self, name: str) -> list[memoryview]:
        """Returns the bytes of a repeated field."""
        values = self._all(name)
        if any(isinstance(value, int) for value in values):
            raise ValueError(f"its {name} is a number")
        return cast("list[memoryview]", values)

    def text(self, name: str) -> str:
        """Returns a text; the empty one where there is none, and marks for what is not UTF-8."""
        value = self._one(name)
        if isinstance(value, int):
            raise ValueError(f"its {name} is a number")
        return bytes(value or b"").decode("utf-8", "replace")

    def messages(self, name: str, schema: Schema) -> Iterator["Message"]:
        """Yields the messages of a repeated field."""
        for chunk in self.chunks(name):
            yield Message(chunk, schema, self._budget)

    def message(self, name: str, schema: Schema) -> "Message":
        """Returns a message; one without fields where there is none."""
        self._one(name)
        return next(self.messages(name, schema), Message(memoryview(b""), schema, self._budget))

    def _all(self, name: str) -> list[int | memoryview]:
        return self._fields.get(self._schema[name], [])

    def _one(self, name: str) -> int | memoryview | None:
        values = self._all(name)
        if len(values) > 1:
            raise ValueError(f"its {name} is there {len(values)} times")
        return values[0] if values else None


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns an unsigned 64-bit number and the position after it."""
    if position < len(data) and data[position] < 0x80:  # nearly all are this short
        return data[position], position + 1
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("a number of more than 64 bits")


def _sign(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
