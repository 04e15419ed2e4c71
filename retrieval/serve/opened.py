"""A generation of an index, opened: vectors, catalogue and the model that belongs to them."""

from dataclasses import dataclass

from indistill.errors import IndexFolderError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.milvus.location import MilvusLocation
from indistill.retrieval.opening import Location, open_index, open_model
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.store.generations import CURRENT, explain_absence

ATTEMPTS = 3
Stamp = tuple[object, ...]


@dataclass(frozen=True)
class Opened:
    """What answers: an index and its model."""

    index: SearchIndex
    session: EmbeddingSession

    def find_item(self, item: int) -> CatalogueItem | None:
        """Returns an item, or None if there is none of this id."""
        return self.index.find_items([item]).get(item)


def read_stamp(folder: Location) -> Stamp:
    """Returns what changes when another generation, or another index, is put in force.

    Raises:
        IndexFolderError: the folder is no index, or the collection cannot be reached.
    """
    if isinstance(folder, MilvusLocation):
        from indistill.retrieval.milvus.index import read_state

        return read_state(folder)
    try:
        state = (folder / CURRENT).stat()
    except OSError as error:
        raise explain_absence(folder) from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def open_generation(folder: Location, threads: int = 0, session: EmbeddingSession | None = None) -> Opened:
    """Returns the generation in force.

    Args:
        folder: the index folder, or a collection of Milvus.
        threads: of ONNX Runtime; 0 for one for each core.
        session: an open model, which is used again if it is the one.

    Raises:
        IndexFolderError: the index is missing, damaged, or replaced again and again.
        ModelError: its model cannot be run.
    """
    for _ in range(ATTEMPTS):
        index = open_index(folder)
        if session is None or session.sha256 != index.manifest.model_sha256:
            session = open_model(folder, threads=threads)
        if session.sha256 == index.manifest.model_sha256:
            return Opened(index, session)
        index.close()
    raise IndexFolderError(f"the index {folder} is replaced faster than it can be opened; try again")
