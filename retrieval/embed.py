"""From image files to vectors: decoding, resizing and inference overlap, and a bad image never shifts a row."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from indistill.data.ahead import count_decoders, map_ahead
from indistill.data.sets import ImageSet
from indistill.errors import DataError, describe_os_error
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.images import SkippedImage, read_pixels
from indistill.preprocess import PixelArray
from indistill.retrieval.store.catalogue import is_text

BATCH_SIZE = 32
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
    images: ImageSet,
    session: EmbeddingSession,
    on_progress: Callable[[int], None] = lambda _: None,
    *,
    known: Mapping[str, Embeddings] = MappingProxyType({}),
    keep: Callable[[Sequence[str], Embeddings], None] = lambda _, __: None,
    workers: int | None = None,
) -> EmbeddedImages:
    """Returns the vectors of image files, in their order.

    Args:
        images: the gallery.
        session: the model.
        on_progress: called with the number of files just done.
        known: vectors (D,) of this model by the SHA-256 of a file: such files are neither decoded nor embedded.
        keep: called with the SHA-256 of each file of a batch and the vectors (B, D) of the batch, once they are made.
        workers: threads that read, hash, decode and resize while the model runs; default one for each core, and four
            at least.
    """
    files: list[ImageFile] = []
    skipped: list[SkippedImage] = []
    vectors: dict[int, Embeddings] = {}  # by the position in `files`
    waiting: list[tuple[int, PixelArray]] = []

    def flush() -> None:
        if waiting:
            made = session.embed_pixels(np.stack([pixels for _, pixels in waiting]))
            keep([files[position].sha256 for position, _ in waiting], made)
            vectors.update(zip((position for position, _ in waiting), made, strict=True))
            waiting.clear()

    for result in _read_ahead(images, session, known, workers or count_decoders()):
        if isinstance(result, SkippedImage):
            skipped.append(result)
        else:
            file, pixels = result
            if pixels is None:
                vectors[len(files)] = known[file.sha256]
            else:
                waiting.append((len(files), pixels))
            files.append(file)
        if len(waiting) == BATCH_SIZE:
            flush()
        on_progress(1)
    flush()
    rows = np.empty((len(files), session.artefact.embedding_dim), dtype=np.float32)
    for position, vector in vectors.items():
        rows[position] = vector
    return EmbeddedImages(files, rows, skipped)


def skip_name(name: str) -> SkippedImage:
    """Returns what is kept of an image whose name no catalogue can hold."""
    return SkippedImage(name.encode(errors="backslashreplace").decode(), "its name is not valid UTF-8")


def _read_ahead(
    images: ImageSet, session: EmbeddingSession, known: Mapping[str, Embeddings], workers: int
) -> Iterator[tuple[ImageFile, PixelArray | None] | SkippedImage]:
    """Yields the files in their order, while others are being read; without pixels where the vector is known."""
    preprocessing = session.artefact.preprocessing

    def read(item: tuple[int, str]) -> tuple[ImageFile, PixelArray | None] | SkippedImage:
        position, name = item
        if not is_text(name):
            return skip_name(name)
        try:
            stored = images.fetch(position)
            sha256 = hashlib.sha256(stored.content).hexdigest()
            pixels = None if sha256 in known else read_pixels(stored.content, preprocessing)
        except DataError as error:
            return SkippedImage(name, str(error))
        except OSError as error:
            return SkippedImage(name, describe_os_error(error))
        return ImageFile(name, sha256, len(stored.content), stored.modified_ns), pixels

    return map_ahead(read, enumerate(images.names), workers=workers, ahead=AHEAD)
