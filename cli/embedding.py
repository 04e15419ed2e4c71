"""Embeds image sets for `evaluate`, by an index's model, an .onnx file or PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indistill.cli.inputs import load_described, report_skipped, warn_of_random_weights
from indistill.data.pixels import read_blocks, require_readable
from indistill.data.sets import ImageSet
from indistill.errors import IndexFolderError
from indistill.export.session import EmbeddingSession
from indistill.images import SkippedImage
from indistill.preprocess import PixelArray, Preprocessing
from indistill.progress import show_progress
from indistill.retrieval.evaluation.evaluate import LabelledVectors
from indistill.retrieval.evaluation.metrics import Vectors
from indistill.retrieval.opening import Location, open_index, open_model
from indistill.retrieval.protocol import SearchIndex

BATCH_SIZE = 256


@dataclass(frozen=True)
class ModelChoice:
    """A model spec, a run or an .onnx file, and where a spec's weights and preprocessing come from."""

    model: str
    weights: Path | None = None
    recipe: str | None = None
    items: list[str] | None = None


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: of the index or model.
        gallery: what is searched.
        queries: what is looked for.
        gallery_images: the gallery's images, None where an index says where they are.
        query_images: None where the queries are the gallery's own images.
        index: None for a model by itself.
        ids: of the index's vectors, in their order.
    """

    name: str
    gallery: LabelledVectors
    queries: LabelledVectors
    gallery_images: ImageSet | None
    query_images: ImageSet | None
    index: SearchIndex | None = None
    ids: Sequence[int] = ()


def embed_index_queries(folder: Location, queries: ImageSet) -> tuple[LabelledVectors, LabelledVectors]:
    """Returns the vectors that an index holds, and those of the queries by its model."""
    subject = embed_by_index(folder, queries)
    assert subject.index is not None  # of an index it always has one
    subject.index.close()
    return subject.gallery, subject.queries


def embed_by_index(folder: Location, queries: ImageSet | None, *, named: bool = False) -> Subject:
    """Returns the vectors that an index holds, and those of the queries by its model.

    Args:
        folder: the index, or a collection of Milvus.
        queries: what is looked for; default the index's own images.
        named: whether the names of the index's images are needed too.

    Raises:
        IndexFolderError: the index is damaged, or was replaced meanwhile.
    """
    session = open_model(folder) if queries is not None else None
    looked_for = _embed_by_session(session, queries) if session is not None and queries is not None else None
    index = open_index(folder)
    if session is not None and index.manifest.model_sha256 != session.sha256:
        index.close()
        raise IndexFolderError(f"the index {folder} was replaced during this evaluation; start it again")
    ids, vectors, labels = index.read_vectors()
    items = index.find_items(ids.tolist()) if named else {}
    gallery = LabelledVectors(vectors, labels, [items[i].path for i in ids.tolist()] if named else ())
    return Subject(
        str(folder), gallery, gallery if looked_for is None else looked_for, None, queries, index, ids.tolist()
    )


def embed_by_model(choice: ModelChoice, gallery: ImageSet, queries: ImageSet | None) -> Subject:
    """Returns the vectors of gallery and queries: unit vectors of an .onnx file, or a network's embedding as it is.

    Args:
        choice: the model.
        gallery: what is searched.
        queries: what is looked for; default the gallery.
    """
    embed, preprocessing = _open_embedder(choice)
    embedded = _embed_blocks(gallery, preprocessing, embed)
    looked_for = embedded if queries is None else _embed_blocks(queries, preprocessing, embed)
    return Subject(choice.model, embedded, looked_for, gallery, queries)


def _open_embedder(choice: ModelChoice) -> tuple[Callable[[PixelArray], Vectors], Preprocessing]:
    if choice.model.endswith(".onnx"):
        session = EmbeddingSession(Path(choice.model))
        return lambda pixels: _embed_in_batches(session, pixels), session.artefact.preprocessing
    from indistill.models.embedding import embed_pixels

    described = load_described(choice.model, weights=choice.weights, recipe=choice.recipe, items=choice.items)
    warn_of_random_weights(described.network, "model", "--weights")
    return lambda pixels: embed_pixels(described.network, described.preprocessing, pixels), described.preprocessing


def _embed_in_batches(session: EmbeddingSession, pixels: PixelArray) -> Vectors:
    starts = range(0, len(pixels), BATCH_SIZE)
    return np.concatenate([session.embed_pixels(pixels[start : start + BATCH_SIZE]) for start in starts])


def _embed_by_session(session: EmbeddingSession, images: ImageSet) -> LabelledVectors:
    return _embed_blocks(images, session.artefact.preprocessing, lambda pixels: _embed_in_batches(session, pixels))


def _embed_blocks(
    images: ImageSet, preprocessing: Preprocessing, embed: Callable[[PixelArray], Vectors]
) -> LabelledVectors:
    """Returns the vectors of the readable images, and says how many were skipped; of the pixels a part is kept."""
    vectors: list[Vectors] = []
    labels: list[str | None] = []
    names: list[str] = []
    skipped: list[SkippedImage] = []
    with show_progress(f"embedding {images.name}", len(images.names)) as advance:
        for block in read_blocks(images, preprocessing):
            skipped += block.skipped
            if len(block):
                vectors.append(embed(block.images))
                names += block.names
                labels += [block.classes[label] if label >= 0 else None for label in block.labels]
            advance(len(block) + len(block.skipped))
    require_readable(images.name, len(labels), skipped)
    report_skipped(skipped)
    return LabelledVectors(np.concatenate(vectors), labels, names)
