"""The models of collections, kept on this machine by their SHA-256. Needs no torch."""

import shutil
from pathlib import Path

from indistill.errors import IndexFolderError, InputError, describe_os_error
from indistill.export.session import EmbeddingSession
from indistill.files.durable import move_into_place, name_aside
from indistill.files.hashing import hash_file
from indistill.retrieval.milvus.collection import CollectionState
from indistill.retrieval.milvus.location import CACHE, MilvusLocation


def keep_model(path: Path, sha256: str) -> None:
    """Copies a model to where `open_collection_model` finds it."""
    kept = locate_model(sha256)
    if kept.is_file():
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, name_aside(kept))
        move_into_place(name_aside(kept), kept)
    except OSError as error:
        raise InputError(f"the model cannot be kept in {kept.parent}: {describe_os_error(error)}") from error


def locate_model(sha256: str) -> Path:
    """Returns where this machine keeps a model."""
    return CACHE.expanduser() / "models" / f"{sha256}.onnx"


def open_collection_model(
    location: MilvusLocation, state: CollectionState, model: Path | None, threads: int
) -> EmbeddingSession:
    """Returns the model of a collection: the file that is named, which is then kept, or the one kept before.

    Args:
        location: of the collection.
        state: what it says of its model.
        model: the file.
        threads: of ONNX Runtime; 0 for one for each core.

    Raises:
        IndexFolderError: the model is not that of the collection, or is not on this machine.
        ModelError: the model cannot be run.
    """
    expected = state.model_sha256
    path = model or locate_model(expected)
    if model is None and not path.is_file():
        raise IndexFolderError(
            f"the model of {location} (SHA-256 {expected[:12]}...) is not on this machine: name its file once, by "
            f"--model FILE.onnx of search, serve or 'index add'; it is kept in {path.parent}"
        )
    if path.is_file() and (found := hash_file(path)) != expected:
        if model is None:
            raise IndexFolderError(f"{path} is damaged: delete it, and name the model's file once by --model")
        raise IndexFolderError(
            f"{model} is not the model of {location} (SHA-256 {found[:12]}..., the collection has {expected[:12]}...)"
        )
    session = EmbeddingSession(path, threads)
    if session.artefact.preprocessing.to_dict() != state.preprocessing:
        raise IndexFolderError(
            f"the collection {location} is damaged: its preprocessing is not that of its model; push the index again "
            "with --overwrite"
        )
    if model is not None:
        keep_model(model, expected)
    return session
