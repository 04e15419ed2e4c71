"""Embeds image sets for `evaluate`, by an index's model, an .onnx file or PyTorch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from indistill.cli.inputs import load_described, report_skipped, warn_of_random_weights
from indistill.data.pixels import read_blocks, require_readable
from indistill.data.sets import ImageSet
from indistill.export.session import EmbeddingSession
from indistill.images import SkippedImage
from indistill.preprocess import PixelArray, Preprocessing
from indistill.progress import show_progress
from indistill.retrieval.evaluate import LabelledVectors
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.metrics import Vectors

BATCH_SIZE = 256


def embed_index_queries(folder: Path, queries: ImageSet) -> tuple[LabelledVectors, LabelledVectors]:
    """Returns the vectors that an index holds, and those of the queries by its model."""
    session = open_model(folder)
    _, vectors, labels = Index(folder).read_vectors()
    return LabelledVectors(vectors, labels), _embed_by_session(session, queries)


def embed_model_sets(
    model: str,
    gallery: ImageSet,
    queries: ImageSet,
    *,
    weights: Path | None,
    recipe: str | None,
    items: list[str] | None,
) -> tuple[LabelledVectors, LabelledVectors]:
    """Returns the vectors of gallery and queries: unit vectors of an .onnx file, or a network's embedding as it is."""
    if model.endswith(".onnx"):
        session = EmbeddingSession(Path(model))
        return _embed_by_session(session, gallery), _embed_by_session(session, queries)
    from indistill.embedding import embed_pixels

    described = load_described(model, weights=weights, recipe=recipe, items=items)
    warn_of_random_weights(described.network, "model", "--weights")

    def embed(pixels: PixelArray) -> Vectors:
        return embed_pixels(described.network, described.preprocessing, pixels)

    return (
        _embed_blocks(gallery, described.preprocessing, embed),
        _embed_blocks(queries, described.preprocessing, embed),
    )


def _embed_by_session(session: EmbeddingSession, images: ImageSet) -> LabelledVectors:
    def embed(pixels: PixelArray) -> Vectors:
        starts = range(0, len(pixels), BATCH_SIZE)
        return np.concatenate([session.embed_pixels(pixels[start : start + BATCH_SIZE]) for start in starts])

    return _embed_blocks(images, session.artefact.preprocessing, embed)


def _embed_blocks(
    images: ImageSet, preprocessing: Preprocessing, embed: Callable[[PixelArray], Vectors]
) -> LabelledVectors:
    """Returns the vectors of the readable images, and says how many were skipped; of the pixels a part is kept."""
    vectors: list[Vectors] = []
    labels: list[str | None] = []
    skipped: list[SkippedImage] = []
    with show_progress(f"embedding {images.name}", len(images.names)) as advance:
        for block in read_blocks(images, preprocessing):
            skipped += block.skipped
            if len(block):
                vectors.append(embed(block.images))
                labels += [block.classes[label] if label >= 0 else None for label in block.labels]
            advance(len(block) + len(block.skipped))
    require_readable(images.name, len(labels), skipped)
    report_skipped(skipped)
    return LabelledVectors(np.concatenate(vectors), labels)
