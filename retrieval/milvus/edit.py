"""Changes of a collection. Each call is kept once it returns; one that was cut off is completed by giving it again."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from indistill import __version__
from indistill.errors import InputError
from indistill.retrieval.milvus.collection import delete_items, upsert_items, write_collection_state
from indistill.retrieval.milvus.index import MilvusIndex
from indistill.retrieval.store.catalogue import CatalogueItem, NewItem
from indistill.retrieval.store.edit import Changes, Edit
from indistill.retrieval.store.generations import PENDING

ID_BITS = 53  # JavaScript's whole numbers have no more


def apply_edit(index: MilvusIndex, edit: Edit) -> Changes:
    """Writes what becomes of the images of a collection, unless nothing changes, and tells what happened.

    What goes is deleted first, so that a path never stands twice.

    Raises:
        IndexFolderError: Milvus cannot be reached.
        InputError: nothing would be left.
    """
    if edit.changes_anything():
        if index.manifest.items - len(edit.removed) + len(edit.added) < 1:
            raise InputError(f"nothing would be left in {index.name}; to be rid of it, drop the collection in Milvus")
        connection = index.connection
        kept = index.find_vectors([item.id for item in edit.replaced]) if edit.replaced else None
        delete_items(connection, edit.removed)
        if kept is not None:
            upsert_items(connection, edit.replaced, kept)
        if edit.added:
            items = [
                CatalogueItem(i, **vars(item))
                for i, item in zip(choose_ids(index, edit.added), edit.added, strict=True)
            ]
            upsert_items(connection, items, np.stack(edit.vectors))
        root, source = edit.place or (index.state.root, index.state.source)
        state = replace(
            index.state, generation=index.state.generation + 1, version=__version__, root=root, source=source
        )
        write_collection_state(connection, state)
        index.refresh()
    if edit.added:
        (index.work / PENDING).unlink(missing_ok=True)
    return Changes(**edit.counts, skipped=edit.skipped, manifest=index.manifest)


def choose_ids(index: MilvusIndex, items: Sequence[NewItem]) -> list[int]:
    """Returns ids for new images: made of path and content, so that several clients can add at the same time.

    Two images get different ids, and one image gets the same whoever adds it.
    """
    chosen: dict[int, NewItem] = {}
    left, attempt = list(items), 0
    while left:
        proposed = {id(item): _make_id(item, attempt) for item in left}
        known = index.find_items(sorted(set(proposed.values())))
        again = []
        for item in left:
            number = proposed[id(item)]
            there = known.get(number)
            taken = there is not None and (there.path, there.sha256) != (item.path, item.sha256)
            if taken or number in chosen:
                again.append(item)
            else:
                chosen[number] = item
        left, attempt = again, attempt + 1
    numbers = {id(item): number for number, item in chosen.items()}
    return [numbers[id(item)] for item in items]


def _make_id(item: NewItem, attempt: int) -> int:
    digest = hashlib.sha256(f"{item.sha256} {attempt} {item.path}".encode()).digest()
    return int.from_bytes(digest[:8]) >> (64 - ID_BITS)
