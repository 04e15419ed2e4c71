"""What an exported file says of itself, in its `metadata_props`. Needs no torch.

Every value is text; structures are JSON. Anyone with ONNX Runtime alone reads it by
`session.get_modelmeta().custom_metadata_map`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from indistill.errors import ModelError
from indistill.preprocess import PixelArray, Preprocessing

Precision = Literal["fp32", "fp16", "int8"]
InputKind = Literal["image", "tensor"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
INPUT_NAMES: dict[InputKind, str] = {"image": "image", "tensor": "pixel_values"}
OUTPUT_NAME = "embedding"
PREFIX = "indistill."


@dataclass(frozen=True)
class Artefact:
    """The description of an exported file.

    Attributes:
        name: the network's model spec, without folders.
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

    def to_metadata(self) -> dict[str, str]:
        """Returns the names and texts for `metadata_props`."""
        values = {
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
        ModelError: the file was not written by `indistill export`, or its metadata is damaged.
    """

    def read(key: str) -> Any:  # noqa: ANN401 -- JSON
        return json.loads(metadata[PREFIX + key])

    try:
        return Artefact(
            metadata[PREFIX + "name"],
            int(metadata[PREFIX + "embedding_dim"]),
            Preprocessing.from_dict(read("preprocessing")),
            next(kind for kind, described in _INPUTS.items() if described == read("input")),
            next(precision for precision in PRECISIONS if precision == metadata[PREFIX + "precision"]),
            read("quantisation"),
            metadata[PREFIX + "teacher"],
            metadata[PREFIX + "weights_sha256"],
            metadata[PREFIX + "data_fingerprint"],
            read("verification"),
            metadata[PREFIX + "version"],
        )
    except (KeyError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise ModelError(
            f"{file} does not describe its preprocessing ({error}): it was not written by 'indistill export RUN --onnx'"
        ) from error
