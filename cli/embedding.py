"""Embeds image sets for `evaluate`, by an index's model, an .onnx file or PyTorch."""

from pathlib import Path

import numpy as np

from indistill.cli.inputs import load_described, read_pixels, warn_of_random_weights
from indistill.data.pixels import Pixels
from indistill.data.sets import ImageSet
from indistill.export.session import EmbeddingSession
from indistill.progress import show_progress
from indistill.retrieval.evaluate import LabelledVectors
from indistill.retrieval.index import Index, open_model

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

    def embed(images: ImageSet) -> LabelledVectors:
        pixels = read_pixels(images, described.preprocessing)
        with show_progress(f"embedding {images.name}", len(pixels)) as advance:
            vectors = embed_pixels(described.network, described.preprocessing, pixels.images, advance)
        return LabelledVectors(vectors, _name_labels(pixels))

    return embed(gallery), embed(queries)


def _embed_by_session(session: EmbeddingSession, images: ImageSet) -> LabelledVectors:
    pixels = read_pixels(images, session.artefact.preprocessing)
    vectors = []
    with show_progress(f"embedding {images.name}", len(pixels)) as advance:
        for start in range(0, len(pixels), BATCH_SIZE):
            batch = pixels.images[start : start + BATCH_SIZE]
            vectors.append(session.embed_pixels(batch))
            advance(len(batch))
    return LabelledVectors(np.concatenate(vectors), _name_labels(pixels))


def _name_labels(pixels: Pixels) -> list[str | None]:
    return [pixels.classes[label] if label >= 0 else None for label in pixels.labels]
