"""Images below an address of an object store or of another file system that fsspec knows. Needs no torch.

`s3://bucket/photos` needs the package s3fs beside fsspec, `gs://` gcsfs, `abfs://` adlfs; fsspec says so itself.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.data.sets import StoredImage, find_classes, refuse_splits
from indistill.errors import DataError
from indistill.images import MAX_FILE_BYTES, SUFFIXES, decode_image

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # as file systems name it


@dataclass(frozen=True)
class UrlSet:
    """The images below an address; the classes are its sub-folders, if no image lies outside them.

    Attributes:
        modified: when each was changed (nanoseconds), as it was listed; 0 where the file system does not say.
        sizes: of each in bytes, as it was listed; -1 where the file system does not say.
    """

    name: str
    url: str
    names: Sequence[str]
    modified: Sequence[int]
    sizes: Sequence[int]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        """The address."""
        return self.url

    def read(self, position: int) -> Image.Image:
        """Returns the decoded file."""
        return decode_image(self.fetch(position).content)

    def fetch(self, position: int) -> StoredImage:
        """Returns the file."""
        files, folder = _connect(self.url)
        try:
            content = files.cat_file(f"{folder}/{self.names[position]}", end=MAX_FILE_BYTES + 1)
        except Exception as error:  # each file system has errors of its own
            raise DataError(f"it cannot be fetched ({_describe(error)})") from error
        if len(content) > MAX_FILE_BYTES:
            raise DataError(f"more than the limit of {MAX_FILE_BYTES:,} bytes")
        return StoredImage(content, self.modified[position])


def is_url(spec: str) -> bool:
    """Returns whether a data spec is an address."""
    return ADDRESS.match(spec) is not None


def join_url(root: Path, name: str) -> str:
    """Returns the path of an image, or its address where the root was one, of which a path keeps one slash."""
    path = str(root / name)
    if path.startswith("file:/"):
        return f"file://{path.removeprefix('file:')}"
    return re.sub(r"^([a-z][a-z0-9+.-]+:/)(?=[^/])", r"\1/", path)


def open_url(spec: str) -> UrlSet:
    """Returns the images below an address, sorted by path; an image is known by its suffix.

    Raises:
        DataError: fsspec, or what it needs for this address, is not installed; it cannot be listed; there are no
            images, or they lie in splits or in a folder without a name.
    """
    url = spec.rstrip("/")
    if PurePosixPath(url).suffix in (".tar", ".csv", ".jsonl", ".parquet"):
        raise DataError(f"data '{spec}': of an address folders of images are read, not manifests or tar shards")
    files, folder = _connect(url)
    try:
        found: Mapping[str, Mapping[str, object]] = files.find(folder, detail=True)
        if not found:
            _list_folder(files, folder)  # which says why, where `find` passes over errors
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"data '{spec}' cannot be listed ({_describe(error)})") from error
    start = len(folder) + 1
    paths = {path[start:]: details for path, details in found.items() if path.startswith(f"{folder}/")}
    names = [name for name in paths if PurePosixPath(name).suffix.lower() in SUFFIXES and not _is_hidden(name)]
    names.sort(key=lambda name: name.split("/"))
    if not names:
        raise DataError(f"data '{spec}': there are no images ({', '.join(sorted(SUFFIXES))})")
    nameless = next((name for name in names if "" in name.split("/")), None)
    if nameless is not None:
        raise DataError(f"data '{spec}': {url}/{nameless} lies in a folder without a name: move it")
    refuse_splits(names, url)
    modified, sizes = [_read_time(paths[name]) for name in names], [_read_size(paths[name]) for name in names]
    return UrlSet(spec, url, names, modified, sizes, *find_classes(names))


def _connect(url: str) -> tuple[Any, str]:
    """Returns the file system of an address, which fsspec makes once, and the folder in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DataError(f"data '{url}' is an address: pip install 'indistill[urls]'") from error
    try:
        files, folder = url_to_fs(url)
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"data '{url}' cannot be read: {_describe(error)}") from error
    return files, str(folder).rstrip("/")


def _list_folder(files: Any, folder: str) -> None:  # noqa: ANN401 - what fsspec gives
    with suppress(FileNotFoundError):
        files.ls(folder)


def _describe(error: Exception) -> str:
    """Returns in one line what a file system's error says, or its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _read_size(details: Mapping[str, object]) -> int:
    value = details.get("size")
    return value if isinstance(value, int) else -1


def _read_time(details: Mapping[str, object]) -> int:
    value = next((details[key] for key in TIMES if details.get(key)), 0)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return int(value * 10**9) if isinstance(value, int | float) else 0
