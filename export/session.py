"""Runs an exported file with ONNX Runtime. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from indistill.errors import ModelError
from indistill.export.artefact import INPUT_NAMES, OUTPUT_NAME, Artefact, make_input, read_artefact
from indistill.hashing import hash_file
from indistill.images import ImageSource, decode_image
from indistill.preprocess import PixelArray

Embeddings = NDArray[np.float32]
BATCH_SIZE = 32
# ONNX Runtime's errors have no common class.
_LOAD_ERRORS = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)


class EmbeddingSession:
    """An exported file, ready to embed.

    Args:
        path: the `.onnx` file.
        threads: of ONNX Runtime; 0 for one for each core.

    Attributes:
        artefact: what the file says of itself.
        sha256: of the file.

    Raises:
        ModelError: no such file, no ONNX file, or not one that `indistill export` wrote.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        if not path.is_file():
            raise ModelError(f"model: there is no file {path}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # FAISS shares the process
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            raise ModelError(f"model: {path} is not an ONNX file that can be run: {_shorten(error)}") from error
        self.path = path
        self.artefact: Artefact = read_artefact(self._session.get_modelmeta().custom_metadata_map, path.name)
        self.sha256 = hash_file(path)

    def embed_pixels(self, pixels: PixelArray) -> Embeddings:
        """Returns unit vectors (B, D) float32 for resized images (B, S, S, 3) uint8; see `Preprocessing.resize`."""
        return self._run(make_input(pixels, self.artefact.preprocessing, self.artefact.input))

    def embed_decoded(self, pixels: PixelArray) -> Embeddings:
        """Returns unit vectors (B, D) float32 for decoded images (B, H, W, 3) uint8 of one size, whatever it is."""
        if self.artefact.input == "image":
            return self._run(pixels)
        resize = self.artefact.preprocessing.resize
        return self.embed_pixels(np.stack([resize(Image.fromarray(image)) for image in pixels]))

    def _run(self, given: PixelArray | NDArray[np.float32]) -> Embeddings:
        embeddings: Embeddings = self._session.run([OUTPUT_NAME], {INPUT_NAMES[self.artefact.input]: given})[0]
        return embeddings

    def embed_images(self, sources: Sequence[ImageSource]) -> Embeddings:
        """Returns unit vectors (N, D) float32 for images given as paths, encoded bytes or PIL images.

        Raises:
            DataError: an image cannot be read; the message is the reason alone.
        """
        resize = self.artefact.preprocessing.resize
        batches = [
            self.embed_pixels(np.stack([resize(decode_image(source)) for source in sources[i : i + BATCH_SIZE]]))
            for i in range(0, len(sources), BATCH_SIZE)
        ]
        return np.concatenate(batches) if batches else np.empty((0, self.artefact.embedding_dim), dtype=np.float32)


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
