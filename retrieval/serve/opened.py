"""A generation of an index, opened: vectors, catalogue and the model that belongs to them."""

from dataclasses import dataclass
from pathlib import Path

from indistill.errors import IndexFolderError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.catalogue import CatalogueItem
from indistill.retrieval.index import Index, open_model
from indistill.retrieval.store import CURRENT

ATTEMPTS = 3
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Opened:
    """What answers: an index and its model."""

    index: Index
    session: EmbeddingSession

    def find_item(self, item: int) -> CatalogueItem | None:
        """Returns an item, or None if there is none of this id."""
        return self.index.catalogue.find_items([item]).get(item)

    def list_items(self, after: int, limit: int) -> list[CatalogueItem]:
        """Returns the items of larger ids, in their order."""
        statement = "SELECT * FROM items WHERE id > ? ORDER BY id LIMIT ?"
        return [CatalogueItem(*row) for row in self.index.catalogue.select(statement, (after, limit))]


def read_stamp(folder: Path) -> Stamp:
    """Returns what changes when another generation, or another index, is put in force.

    Raises:
        IndexFolderError: the folder is no index.
    """
    try:
        state = (folder / CURRENT).stat()
    except OSError as error:
        raise IndexFolderError(
            f"{folder} is not an index (it has no {CURRENT}): make one by 'indistill index build IMAGES'"
        ) from error
    return state.st_ino, state.st_mtime_ns, state.st_size


def open_generation(folder: Path, threads: int = 0, session: EmbeddingSession | None = None) -> Opened:
    """Returns the generation in force.

    Args:
        folder: the index folder.
        threads: of ONNX Runtime; 0 for one for each core.
        session: an open model, which is used again if it is the one.

    Raises:
        IndexFolderError: the index is missing, damaged, or replaced again and again.
        ModelError: its model cannot be run.
    """
    for _ in range(ATTEMPTS):
        index = Index(folder)
        if session is None or session.sha256 != index.manifest.model_sha256:
            session = open_model(folder, threads=threads)
        if session.sha256 == index.manifest.model_sha256:
            return Opened(index, session)
        index.close()
    raise IndexFolderError(f"the index {folder} is replaced faster than it can be opened; try again")
