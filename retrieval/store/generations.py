"""The generations of an index folder: written aside, synced, then put in force. One process writes at a time.

CURRENT                         the name of the generation in force
generations/00000001/
    manifest.json               what the generation is, with the size and SHA-256 of each of its files
    index.faiss                 what FAISS searches, by id
    vectors-00000001.npy        the embeddings by id, of one change each; later generations link to them
    catalogue.sqlite            the images, by id
    model.onnx                  the model
    skipped.jsonl               files that the last change passed over, with the reason
lock                            held by the process that writes
pending.vectors                 embeddings of a change that was cut off; see journal.py
pending.chunks/                 embeddings of a build on a cluster that was cut off; see cluster/chunks.py

A generation is never changed once it is in force. The one before it stays until the next change, for those who have it
open; a process that is killed leaves the old generation in force, or the new one.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from indistill.errors import IndexFolderError, IndistillError, InputError, describe_os_error
from indistill.export.artefact import MAX_DIMENSION
from indistill.files.bounded import read_bounded, require_regular
from indistill.files.durable import move_into_place, name_aside, sync_file, write_aside
from indistill.files.formats import BUILD_AGAIN, INDEX, require_format
from indistill.files.hashing import hash_file
from indistill.files.locking import hold_lock
from indistill.images import SkippedImage
from indistill.retrieval.store.catalogue import is_text
from indistill.retrieval.store.checked import hash_once, note_hash

CURRENT, GENERATIONS, PENDING = "CURRENT", "generations", "pending.vectors"
PENDING_CHUNKS = "pending.chunks"
SHARDS = "shards.json"  # of a folder of indexes; see cluster/shards.py
MANIFEST, FAISS, CATALOGUE, MODEL, SKIPPED = (
    "manifest.json",
    "index.faiss",
    "catalogue.sqlite",
    "model.onnx",
    "skipped.jsonl",
)
NO_SOURCE = "-"
ATTEMPTS = 5
Found = TypeVar("Found")
Evidence = Literal["content", "note", "size"]


@dataclass(frozen=True)
class Manifest:
    """What a generation of an index is.

    Attributes:
        items: number of images.
        dimension: D of the vectors.
        factory: FAISS's name of the index type.
        metric: inner product of unit vectors, the cosine.
        model_sha256: of the model that made the vectors.
        generation: counts from 1.
        root: the gallery's folder, to which the catalogue's paths are relative; or its data spec.
        skipped: number of files that the last change passed over.
        segments: the files of embeddings, oldest first.
        version: of indistill.
        parameters: of the index type when it is searched, such as `nprobe`.
        trained_on: number of images when the index type was chosen and trained.
        trials: what was tried when the type was chosen; empty for one that was named.
        source: the data spec of the gallery, which `sync` follows; `-` where there is none, as for paths from standard
            input; empty where it is not known, so that `sync` follows the root.
        files: SHA-256 of each other file of the generation.
        sizes: of these files, in bytes; empty where an earlier indistill wrote it.
        format: of the folder.
    """

    items: int
    dimension: int
    factory: str
    metric: str
    model_sha256: str
    generation: int
    root: str
    skipped: int
    segments: tuple[str, ...]
    version: str
    parameters: dict[str, int] = field(default_factory=dict)
    trained_on: int = 0
    trials: tuple[dict[str, object], ...] = ()
    source: str = ""
    files: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    format: int = INDEX.version


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of the generation in force.

    Raises:
        IndexFolderError: the folder is no index, is damaged, or of another format.
    """
    return read_generation(folder, lambda manifest: manifest)


def read_generation(folder: Path, read: Callable[[Manifest], Found]) -> Found:
    """Returns what is read of the generation in force; of the next one, where changes remove it meanwhile.

    Args:
        folder: the index folder.
        read: called with the manifest of the generation.

    Raises:
        IndexFolderError: the folder is no index, is damaged, or of another format.
    """
    require_text(folder)
    for _ in range(ATTEMPTS - 1):
        number = read_current(folder)
        try:
            return read(_read_manifest(folder, number))
        except IndistillError:
            if read_current(folder) == number:
                raise
    return read(_read_manifest(folder, read_current(folder)))


def explain_absence(folder: Path) -> IndexFolderError:
    """Returns the error that says what a folder without a generation in force is in place of an index."""
    if (folder / SHARDS).is_file():
        return IndexFolderError(
            f"{folder} is a folder of shards, which 'search', 'evaluate', 'dedupe', 'index info' and 'index verify' "
            "take: name one of its indexes, or another"
        )
    if (folder / PENDING).is_file() or (folder / PENDING_CHUNKS).is_dir():
        return IndexFolderError(
            f"the index {folder} is not complete: its 'indistill index build' was cut off; give it again to go on"
        )
    reason = f"it has no {CURRENT}" if folder.exists() else "there is no such folder"
    return IndexFolderError(f"{folder} is not an index ({reason}): make one by 'indistill index build IMAGES'")


def _read_manifest(folder: Path, number: int | None) -> Manifest:
    if number is None:
        raise explain_absence(folder)
    try:
        content = json.loads(read_bounded(name_generation(folder, number) / MANIFEST).decode("utf-8"))
        require_format(INDEX, content.get("format", 1), f"the index {folder}", IndexFolderError)
        content |= {"segments": tuple(content["segments"]), "trials": tuple(content["trials"])}
        manifest = Manifest(**content)
        _check_names(manifest, number)
        return manifest
    except PermissionError as error:
        raise IndexFolderError(f"the index {folder} cannot be read: {describe_os_error(error)}") from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise IndexFolderError(
            f"the index {folder} is damaged: its {MANIFEST} cannot be read; {BUILD_AGAIN}"
        ) from error


def _check_names(manifest: Manifest, number: int) -> None:
    """Raises ValueError where a manifest, which anyone may have written, names what is not its generation's."""
    numbers = (manifest.items, manifest.dimension, manifest.generation, manifest.skipped, manifest.trained_on)
    texts = (manifest.factory, manifest.metric, manifest.model_sha256, manifest.root, manifest.version, manifest.source)
    counts = (manifest.parameters, manifest.sizes)
    typed = (
        all(_is_count(value) for value in numbers)
        and all(isinstance(value, str) for value in (*texts, *manifest.segments))
        and all(isinstance(value, dict) for value in (*counts, manifest.files, *manifest.trials))
        and all(_is_count(value) for found in counts for value in found.values())
        and all(isinstance(value, str) for value in manifest.files.values())
        and 0 < manifest.dimension <= MAX_DIMENSION
    )
    if not typed:
        raise ValueError(manifest)
    needed = {FAISS, CATALOGUE, MODEL, SKIPPED, *manifest.segments}
    strange = [name for name in manifest.segments if not re.fullmatch(r"vectors-\d{8}\.npy", name)]
    if strange or set(manifest.files) != needed:
        raise ValueError(manifest.files)
    if manifest.generation != number or not set(manifest.sizes) <= needed:
        raise ValueError(manifest.generation, manifest.sizes)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_shard(folder: Path) -> bool:
    """Returns whether an index is one of a folder of shards, and holds a part of its gallery."""
    return (folder.resolve().parent.parent / SHARDS).is_file()


def refuse_shard(folder: Path) -> None:
    """Raises InputError for a shard, which holds a part of its gallery."""
    if is_shard(folder):
        raise InputError(f"{folder} is a shard, and would take in the images of the others: build the shards again")


def read_current(folder: Path) -> int | None:
    """Returns the number of the generation in force, None where there is none yet.

    Raises:
        IndexFolderError: what says so is damaged, or cannot be read.
    """
    try:
        name = read_bounded(folder / CURRENT).strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise IndexFolderError(f"the index {folder} cannot be read: {describe_os_error(error)}") from error
    if not re.fullmatch(rb"\d{8}", name):
        raise IndexFolderError(f"the index {folder} is damaged: its {CURRENT} cannot be read; {BUILD_AGAIN}")
    return int(name)


def name_generation(folder: Path, number: int) -> Path:
    """Returns the folder of a generation."""
    return folder / GENERATIONS / f"{number:08d}"


@contextmanager
def lock_index(folder: Path, *, create: bool = False) -> Iterator[None]:
    """Holds the right to write to an index folder.

    Args:
        folder: the index folder.
        create: whether an index may be made there; otherwise a folder that is none is left as it is.

    Raises:
        IndexFolderError: another process holds it, or the folder is no index.
        InputError: the folder cannot be written to.
    """
    if not create:
        read_manifest(folder)
    with hold_lock(folder, "index", IndexFolderError):
        chunks, shards = folder / PENDING_CHUNKS, [*folder.glob("shards-*"), *folder.glob("shards-*/*")]
        names = (CURRENT, PENDING, PENDING_CHUNKS, GENERATIONS, SHARDS)
        refuse_links(folder, [folder / name for name in names])
        refuse_links(folder, [name_aside(folder / name) for name in (CURRENT, SHARDS)])
        refuse_links(folder, [*shards, *(chunks.iterdir() if chunks.is_dir() else ())])
        yield


def require_text(folder: Path) -> None:
    """Raises InputError where the path of an index is not UTF-8: neither FAISS nor ONNX Runtime opens such a file."""
    if not is_text(str(folder)):
        raise InputError(f"the index {folder} cannot be used: its path is not valid UTF-8; rename it")


def refuse_links(folder: Path, paths: Iterable[Path]) -> None:
    """Raises IndexFolderError for a link: a folder from elsewhere must not lead what is written to another place."""
    for path in paths:
        if path.is_symlink():
            name = path.relative_to(folder)
            raise IndexFolderError(f"{folder} has a link in place of its {name}: it is not safe to change")


@contextmanager
def draft_generation(folder: Path) -> Iterator[Path]:
    """Yields a folder for the next generation, of a folder that is locked; it goes away unless it is committed.

    Raises:
        IndexFolderError: the catalogue that is changed is damaged.
        InputError: something cannot be written.
    """
    current = _find_last(folder)
    draft = folder / GENERATIONS / f".{current + 1:08d}"
    try:
        draft.parent.mkdir(exist_ok=True)
        later = [path for number, path in _list_generations(folder).items() if number > current]
        for leftover in (*draft.parent.glob("." + 8 * "[0-9]"), *later):  # of a process that was killed
            shutil.rmtree(leftover)
        draft.mkdir()
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, sqlite3.OperationalError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else error
        raise InputError(f"the index {folder} cannot be written: {reason}") from error
    except sqlite3.DatabaseError as error:
        raise IndexFolderError(f"the index {folder} is damaged: its {CATALOGUE}: {error}; {BUILD_AGAIN}") from error


def commit_generation(draft: Path, manifest: Manifest, known: Mapping[str, str] = MappingProxyType({})) -> Manifest:
    """Puts a complete draft in force, and removes the generations before the last one.

    Args:
        draft: where all files but the manifest lie.
        manifest: of which the number and the checksums are filled in here.
        known: the SHA-256 of files that were linked from the generation before, or hashed as they were written.

    Raises:
        InputError: the model is not the one that made the vectors.
    """
    folder, number = draft.parent.parent, int(draft.name[1:])
    paths = sorted(draft.iterdir())
    files = {path.name: known.get(path.name) or hash_file(path) for path in paths}
    if files[MODEL] != manifest.model_sha256:
        raise InputError(f"the model of the index {folder} was changed meanwhile: give the command again")
    sizes = {path.name: path.stat().st_size for path in paths}
    manifest = replace(manifest, generation=number, files=files, sizes=sizes)
    (draft / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    for path in (*paths, draft / MANIFEST, draft):
        sync_file(path)
    move_into_place(draft, name_generation(folder, number))
    with write_aside(folder / CURRENT) as stream:
        stream.write(f"{number:08d}\n".encode())
    move_into_place(name_aside(folder / CURRENT), folder / CURRENT)
    note_hash(name_generation(folder, number) / FAISS, files[FAISS])
    for name in (MODEL, SKIPPED):  # they lay here in format 1
        (folder / name).unlink(missing_ok=True)
    for earlier, path in _list_generations(folder).items():
        if earlier < number - 1:
            shutil.rmtree(path, ignore_errors=True)  # Windows keeps what is open
    return manifest


def link_files(source: Path, draft: Path, names: Sequence[str]) -> None:
    """Gives a draft files of an earlier generation as they are."""
    for name in names:
        try:
            os.link(source / name, draft / name)
        except OSError:  # a file system without links
            shutil.copyfile(source / name, draft / name)


def find_damage(folder: Path, manifest: Manifest, name: str, by: Evidence = "content") -> str | None:
    """Returns what is wrong with a file of a generation, None where nothing is.

    Args:
        folder: the index folder.
        manifest: of the generation.
        name: of the file.
        by: what is compared: all bytes; the hash that was noted when a large file was read last (see checked.py); or
            the size alone, which takes no time.
    """
    path = name_generation(folder, manifest.generation) / name
    try:
        size = require_regular(path)
        hashes: dict[Evidence, Callable[[Path], str]] = {"content": hash_file, "note": hash_once}
        same = by == "size" or hashes[by](path) == manifest.files[name]
        if size != manifest.sizes.get(name, size) or not same:
            return "is not as it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {describe_os_error(error)}"
    return None


def require_whole(folder: Path, manifest: Manifest, names: Sequence[str], by: Evidence = "content") -> None:
    """Raises IndexFolderError unless files of a generation are as they were written; see `find_damage`."""
    for name in names:
        damage = find_damage(folder, manifest, name, by)
        if damage is not None:
            raise IndexFolderError(
                f"the index {folder} is damaged: its {name} {damage}; 'indistill index rebuild' mends an {FAISS}, "
                "'indistill index build --overwrite' the rest"
            )


def explain_count(folder: Path, manifest: Manifest, found: int) -> str:
    """Returns the error of a catalogue that has another number of images than the manifest says."""
    differ = f"its {CATALOGUE} has {found} images, its {MANIFEST} says {manifest.items}"
    return f"the index {folder} is damaged: {differ}; {BUILD_AGAIN}"


def write_skipped(path: Path, skipped: Sequence[SkippedImage]) -> None:
    """Writes the files that were passed over, an object a line."""
    lines = (json.dumps(asdict(image), ensure_ascii=False) + "\n" for image in skipped)
    path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


@contextmanager
def discard_unfinished(folder: Path) -> Iterator[None]:
    """Removes an index folder if the context fails before anything was embedded or finished in it."""
    try:
        yield
    except BaseException:
        if not any((folder / name).exists() for name in (CURRENT, PENDING, PENDING_CHUNKS)):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _find_last(folder: Path) -> int:
    """Returns the number of the generation in force; of an index whose CURRENT is damaged, the highest there is."""
    try:
        return read_current(folder) or 0
    except IndexFolderError:
        return max(_list_generations(folder), default=0)


def _list_generations(folder: Path) -> dict[int, Path]:
    """Returns the generations that lie in a folder by their numbers; others may have put more there."""
    return {int(path.name): path for path in (folder / GENERATIONS).glob(8 * "[0-9]")}
