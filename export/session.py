"""Runs an exported file with ONNX Runtime. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from indistill.errors import ModelError, escape_text
from indistill.export.artefact import INPUT_NAMES, OUTPUT_NAME, Artefact, make_input, read_artefact
from indistill.export.opening import examine_file, require_interface
from indistill.images import ImageSource, read_pixels
from indistill.preprocess import PixelArray

Embeddings = NDArray[np.float32]
BATCH_SIZE = 32
# ONNX Runtime's errors have no common class.
RUNTIME_ERRORS = (
    UnicodeDecodeError,  # of a message with a name that is not UTF-8
    *(
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
    ),
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
        ModelError: no such file, no ONNX file, one that is not safe, or not one that `indistill export` wrote.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        model = examine_file(path)  # before anything of it is run
        self.artefact: Artefact = read_artefact(model.metadata, path.name)
        require_interface(model, self.artefact, path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # FAISS shares the process
        options.log_severity_level = 4  # its errors are raised too, and would be printed twice
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except RUNTIME_ERRORS as error:
            raise ModelError(f"model: {path} is not an ONNX file that can be run: {_shorten(error)}") from error
        self.path = path
        self.sha256 = model.sha256

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
        try:
            embeddings: Embeddings = self._session.run([OUTPUT_NAME], {INPUT_NAMES[self.artefact.input]: given})[0]
        except RUNTIME_ERRORS as error:
            raise ModelError(f"model: {self.path} cannot be run: {_shorten(error)}") from error
        expected = (len(given), self.artefact.embedding_dim)
        if embeddings.shape != expected:
            raise ModelError(f"model: {self.path} gives {embeddings.shape} where it says {expected}")
        return embeddings

    def embed_images(self, sources: Sequence[ImageSource]) -> Embeddings:
        """Returns unit vectors (N, D) float32 for images given as paths, encoded bytes or PIL images.

        Raises:
            DataError: an image cannot be read; the message is the reason alone.
        """
        preprocessing = self.artefact.preprocessing
        batches = [
            self.embed_pixels(np.stack([read_pixels(source, preprocessing) for source in sources[i : i + BATCH_SIZE]]))
            for i in range(0, len(sources), BATCH_SIZE)
        ]
        return np.concatenate(batches) if batches else np.empty((0, self.artefact.embedding_dim), dtype=np.float32)


def _shorten(error: Exception) -> str:
    return escape_text(" ".join(str(error).split()))
