"""From image files to vectors: decoding, resizing and inference overlap, and a bad image never shifts a row."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from indistill.data.ahead import map_ahead
from indistill.data.sets import ImageSet
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
    images: ImageSet, session: EmbeddingSession, on_progress: Callable[[int], None] = lambda _: None
) -> EmbeddedImages:
    """Returns the vectors of image files, in their order.

    Args:
        images: the gallery.
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

    for result in _read_ahead(images, session):
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


def _read_ahead(images: ImageSet, session: EmbeddingSession) -> Iterator[tuple[ImageFile, PixelArray] | SkippedImage]:
    """Yields the files in their order, while others are being read."""
    preprocessing = session.artefact.preprocessing

    def read(item: tuple[int, str]) -> tuple[ImageFile, PixelArray] | SkippedImage:
        position, name = item
        printable = name.encode("utf-8", "backslashreplace").decode("utf-8")
        if printable != name:
            return SkippedImage(printable, "its name is not UTF-8")
        try:
            stored = images.fetch(position)
            pixels = preprocessing.resize(decode_image(stored.content))
        except DataError as error:
            return SkippedImage(name, str(error))
        except OSError as error:
            return SkippedImage(name, error.strerror or str(error))
        sha256, size_bytes = hashlib.sha256(stored.content).hexdigest(), len(stored.content)
        return ImageFile(name, sha256, size_bytes, stored.modified_ns), pixels

    return map_ahead(read, enumerate(images.names), workers=DECODERS, ahead=AHEAD)
