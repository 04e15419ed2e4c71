"""Image queries against an index. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indistill.errors import DataError, IndexFolderError
from indistill.images import read_pixels
from indistill.retrieval.index import Hit, Index, open_model


@dataclass(frozen=True)
class SearchResults:
    """The hits of each query, best first, and the gallery's root, to which the hits' paths are relative."""

    root: Path
    queries: list[tuple[Path, list[Hit]]]


def search_images(folder: Path, queries: Sequence[Path], *, k: int, model: Path | None = None) -> SearchResults:
    """Returns the k nearest images of an index for each query image.

    Args:
        folder: the index folder.
        queries: image files.
        k: hits for each query.
        model: the index's model from elsewhere.

    Raises:
        DataError: a query cannot be read.
        IndexFolderError: the index cannot be used, or not with this model.
        ModelError: the model cannot be run.
    """
    session = open_model(folder, model, threads=1)  # the fastest for a few images
    pixels = []
    for query in queries:
        try:
            pixels.append(read_pixels(query, session.artefact.preprocessing))
        except DataError as error:
            raise DataError(f"query {query}: {error}") from error
    index = Index(folder)
    if index.manifest.model_sha256 != session.sha256:
        raise IndexFolderError(f"the index {folder} was replaced during this search; search again")
    hits = index.search(session.embed_pixels(np.stack(pixels)), k)
    return SearchResults(Path(index.manifest.root), list(zip(queries, hits, strict=True)))
