"""What an exported file says of itself, in its `metadata_props`. Needs no torch.

Every value is text; structures are JSON. Anyone with ONNX Runtime alone reads it by
`session.get_modelmeta().custom_metadata_map`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from indistill.errors import InputError, ModelError, escape_text
from indistill.files.formats import ARTEFACT, require_format
from indistill.preprocess import PixelArray, Preprocessing

Precision = Literal["fp32", "fp16", "int8"]
InputKind = Literal["image", "tensor"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
INPUT_NAMES: dict[InputKind, str] = {"image": "image", "tensor": "pixel_values"}
OUTPUT_NAME = "embedding"
PREFIX = "indistill."
GRAPH_SHA256 = PREFIX + "graph_sha256"  # of the graph's bytes in the file: a flipped bit may end ONNX Runtime
MAX_DIMENSION = 65_536


@dataclass(frozen=True)
class Artefact:
    """The description of an exported file.

    Attributes:
        name: the network's model spec, without folders, and its width where it is not whole.
        embedding_dim: D.
        preprocessing: from a decoded image to the network's input.
        input: `image`, decoded images (B, H, W, 3) uint8 of any size, preprocessing is in the graph; or `tensor`,
            normalised pixels (B, 3, S, S) float32.
        precision: of the weights.
        quantisation: how int8 came about; empty for others.
        teacher: the teacher's model spec, without folders; empty where there was none.
        weights_sha256: of the weights that were exported.
        data_fingerprint: of the images of training; empty where they are not known.
        verification: figures of the parity gate.
        version: of indistill.
        format: of the metadata and the graph's interface.
    """

    name: str
    embedding_dim: int
    preprocessing: Preprocessing
    input: InputKind
    precision: Precision
    quantisation: Mapping[str, Any]
    teacher: str
    weights_sha256: str
    data_fingerprint: str
    verification: Mapping[str, float | str]
    version: str
    format: int = ARTEFACT.version

    def to_metadata(self) -> dict[str, str]:
        """Returns the names and texts for `metadata_props`."""
        values = {
            "format": str(self.format),
            "version": self.version,
            "name": self.name,
            "embedding_dim": str(self.embedding_dim),
            "normalised": "true",
            "input": json.dumps(_INPUTS[self.input]),
            "preprocessing": json.dumps(self.preprocessing.to_dict()),
            "preprocessing_in_graph": json.dumps(_STEPS if self.input == "image" else []),
            "precision": self.precision,
            "quantisation": json.dumps(dict(self.quantisation)),
            "teacher": self.teacher,
            "weights_sha256": self.weights_sha256,
            "data_fingerprint": self.data_fingerprint,
            "verification": json.dumps(dict(self.verification)),
        }
        return {PREFIX + key: value for key, value in values.items()}


def make_input(pixels: PixelArray, preprocessing: Preprocessing, kind: InputKind) -> PixelArray | NDArray[np.float32]:
    """Returns what a file takes for resized images (B, S, S, 3) uint8, as `Preprocessing.resize` gives them."""
    if kind == "tensor":
        return preprocessing.normalise(pixels)
    margin = preprocessing.shortest_edge - preprocessing.image_size
    if margin == 0:
        return pixels
    around = (margin // 2, margin - margin // 2)  # the graph crops it away again
    return np.pad(pixels, ((0, 0), around, around, (0, 0)))


_INPUTS: dict[InputKind, dict[str, str]] = {
    "image": {"layout": "NHWC", "dtype": "uint8", "colours": "RGB"},
    "tensor": {"layout": "NCHW", "dtype": "float32", "colours": "RGB"},
}
_STEPS = ["resize", "centre crop", "divide by 255", "mean", "std"]


def read_artefact(metadata: Mapping[str, str], file: str) -> Artefact:
    """Returns the description that a file carries.

    Args:
        metadata: the names and texts of its `metadata_props`.
        file: its name, for the message.

    Raises:
        ModelError: the file was not written by `indistill export`, is of another format, or its metadata is damaged.
    """
    require_format(ARTEFACT, _find_format(metadata), file, ModelError)
    try:
        dimension, verification = int(metadata[PREFIX + "embedding_dim"]), _read_json(metadata, "verification")
        if not 1 <= dimension <= MAX_DIMENSION:
            raise ValueError(f"embedding_dim is {dimension}, at most {MAX_DIMENSION} is possible")
        return Artefact(
            _read_text(metadata, "name"),
            dimension,
            Preprocessing.from_dict(_read_json(metadata, "preprocessing")),
            _choose_input(_read_json(metadata, "input")),
            _choose_precision(_read_text(metadata, "precision")),
            _read_json(metadata, "quantisation"),
            _read_text(metadata, "teacher"),
            _read_text(metadata, "weights_sha256"),
            _read_text(metadata, "data_fingerprint"),
            verification,
            _read_text(metadata, "version"),
        )
    except (KeyError, ValueError, TypeError, OverflowError, InputError) as error:
        raise ModelError(
            f"{file} does not describe its preprocessing ({escape_text(str(error))}): it was not written by "
            "'indistill export RUN --onnx', or is damaged"
        ) from error


def _find_format(metadata: Mapping[str, str]) -> object:
    """Returns the format that a file states; those before stated none, and the first ones no quantisation."""
    text = metadata.get(PREFIX + "format")
    if text is None:
        return 1 if PREFIX + "normalised" in metadata and PREFIX + "quantisation" not in metadata else ARTEFACT.version
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else text


def _choose_input(described: dict[str, Any]) -> InputKind:
    for kind, known in _INPUTS.items():
        if described == known:
            return kind
    raise ValueError(f"input is {described}")


def _choose_precision(name: str) -> Precision:
    for precision in PRECISIONS:
        if name == precision:
            return precision
    raise ValueError(f"precision is {name}")


def _read_text(metadata: Mapping[str, str], key: str) -> str:
    text = metadata[PREFIX + key]
    if not text.isprintable():
        raise ValueError(f"{key} has characters that are no text")
    return text


def _read_json(metadata: Mapping[str, str], key: str) -> dict[str, Any]:
    """Returns an object whose numbers are all finite."""
    try:
        value = json.loads(metadata[PREFIX + key], parse_float=_read_float, parse_constant=_read_float)
    except RecursionError as error:
        raise ValueError(f"{key} is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError(f"{key} is no JSON object")
    return value


def _read_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number
