"""The embeddings of an index as they are stored: files of rows (id, vector), ids ascending, mapped when read."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indistill.errors import IndexFolderError
from indistill.export.session import Embeddings
from indistill.files.arrays import map_array

Ids = NDArray[np.int64]


def write_segment(path: Path, ids: Ids, vectors: Embeddings) -> None:
    """Writes the vectors (N, D) of ids (N,), which ascend.

    Raises:
        OSError: not all of it can be written.
    """
    rows = np.empty(len(ids), dtype=_describe_row(vectors.shape[1]))
    rows["id"], rows["vector"] = ids, vectors
    with path.open("wb") as stream:  # checks each write; np.save loses the end of a file on a full disk in silence
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(rows))
        stream.write(rows.view(np.uint8).data)


class Segments:
    """The segments of a generation, opened for reading.

    Args:
        paths: of the files.
        dimension: D.

    Raises:
        IndexFolderError: a file is missing, or holds something else.
    """

    def __init__(self, paths: Sequence[Path], dimension: int) -> None:
        self._rows = [self._open(path, dimension) for path in paths]
        self._dimension = dimension
        self._ids: list[Ids] | None = None

    def find(self, ids: Ids) -> Embeddings:
        """Returns the vectors (N, D) of ids (N,).

        Raises:
            IndexFolderError: an id has none.
        """
        if self._ids is None:
            self._ids = [np.ascontiguousarray(rows["id"]) for rows in self._rows]
        vectors = np.empty((len(ids), self._dimension), dtype=np.float32)
        missing = np.ones(len(ids), dtype=bool)
        for rows, stored in zip(self._rows, self._ids, strict=True):
            if not len(stored):
                continue
            places = np.minimum(np.searchsorted(stored, ids), len(stored) - 1)
            found = stored[places] == ids
            vectors[found] = rows["vector"][places[found]]
            missing &= ~found
        if missing.any():
            raise IndexFolderError(
                f"the index is damaged: id {ids[missing][0]} has no stored embedding; build it again"
            )
        return vectors

    @staticmethod
    def _open(path: Path, dimension: int) -> NDArray[np.void]:
        try:
            rows = map_array(path)
        except (OSError, ValueError) as error:
            raise IndexFolderError(f"the index is damaged: {path} cannot be read; build it again") from error
        if rows.dtype != _describe_row(dimension) or rows.ndim != 1:
            raise IndexFolderError(f"the index is damaged: {path} holds something else; build it again")
        return np.asarray(rows)


def _describe_row(dimension: int) -> np.dtype[np.void]:
    return np.dtype([("id", "<i8"), ("vector", "<f4", (dimension,))])
