"""From image files to vectors: decoding, resizing and inference overlap, and a bad image never shifts a row."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indistill.errors import DataError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.images import SkippedImage, decode_image
from indistill.preprocess import PixelArray

BATCH_SIZE = 64
DECODERS = 4
AHEAD = 4 * BATCH_SIZE  # images read before they are needed


@dataclass(frozen=True)
class ImageFile:
    """An image that was embedded: its name relative to the gallery, and what tells whether it has changed since."""

    name: str
    sha256: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class EmbeddedImages:
    """The images of a folder that could be read, a row of `vectors` (N, D) for each, and those that could not."""

    files: list[ImageFile]
    vectors: Embeddings
    skipped: list[SkippedImage]


def embed_files(
    folder: Path, names: Sequence[str], session: EmbeddingSession, on_progress: Callable[[int], None] = lambda _: None
) -> EmbeddedImages:
    """Returns the vectors of image files, in their order.

    Args:
        folder: the gallery's root.
        names: paths relative to it.
        session: the model.
        on_progress: called with the number of files just done.
    """
    files: list[ImageFile] = []
    skipped: list[SkippedImage] = []
    vectors: list[Embeddings] = []
    waiting: list[PixelArray] = []

    def flush() -> None:
        if waiting:
            vectors.append(session.embed_pixels(np.stack(waiting)))
            waiting.clear()

    for result in _read_ahead(folder, names, session):
        if isinstance(result, SkippedImage):
            skipped.append(result)
        else:
            file, pixels = result
            files.append(file)
            waiting.append(pixels)
        if len(waiting) == BATCH_SIZE:
            flush()
        on_progress(1)
    flush()
    empty = np.empty((0, session.artefact.embedding_dim), dtype=np.float32)
    return EmbeddedImages(files, np.concatenate([empty, *vectors]), skipped)


def _read_ahead(
    folder: Path, names: Sequence[str], session: EmbeddingSession
) -> Iterator[tuple[ImageFile, PixelArray] | SkippedImage]:
    """Yields the files in their order, while others are being read."""
    preprocessing = session.artefact.preprocessing

    def read(name: str) -> tuple[ImageFile, PixelArray] | SkippedImage:
        path = folder / name
        printable = name.encode("utf-8", "backslashreplace").decode("utf-8")
        if printable != name:
            return SkippedImage(printable, "its name is not UTF-8")
        try:
            content, status = path.read_bytes(), path.stat()
            pixels = preprocessing.resize(decode_image(content))
        except DataError as error:
            return SkippedImage(name, str(error))
        except OSError as error:
            return SkippedImage(name, error.strerror or str(error))
        return ImageFile(name, hashlib.sha256(content).hexdigest(), status.st_size, status.st_mtime_ns), pixels

    pending: deque[Future[tuple[ImageFile, PixelArray] | SkippedImage]] = deque()
    with ThreadPoolExecutor(DECODERS) as pool:
        for name in names:
            pending.append(pool.submit(read, name))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
