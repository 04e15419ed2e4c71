"""The FAISS file of an index, with checksums that fit: what a stranger who knows the format may write."""

import random
import shutil
from pathlib import Path

import numpy as np

from benchmarks.fuzz.damage import damage, require_line
from benchmarks.fuzz.originals import FACTORIES, provide
from benchmarks.fuzz.targets.index import seal
from indistill.errors import InputError
from indistill.retrieval.index import Index
from indistill.retrieval.store.changes import remove_items
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import verify_index


def prepare() -> None:
    """Makes the files that are damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Searches, verifies and changes an index whose FAISS file is changed."""
    index = folder / "index"
    shutil.copytree(provide(f"{random.choice(sorted(FACTORIES))}.index"), index)
    (generation,) = (index / "generations").iterdir()
    path = generation / "index.faiss"
    path.write_bytes(damage(path.read_bytes(), random))
    seal(generation)
    for use in (_search, verify_index, _remove):
        try:
            use(index)
        except InputError as error:
            require_line(error)


def _search(index: Path) -> None:
    with Index(index) as opened:
        queries = np.eye(3, opened.manifest.dimension, dtype=np.float32)
        opened.search(queries, 5)
        opened.search(queries, 5, rerank=10)


def _remove(index: Path) -> None:
    remove_items(index, Selection(ids=(3,)))
