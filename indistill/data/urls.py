"""Images below an address of an object store or of another file system that fsspec knows. Needs no torch.

`s3://bucket/photos` needs the package s3fs beside fsspec, `gs://` gcsfs, `abfs://` adlfs; fsspec says so itself.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.data.sets import StoredImage, number_labels
from indistill.errors import DataError
from indistill.images import MAX_FILE_BYTES, SUFFIXES, decode_image

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://")
TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # as file systems name it


@dataclass(frozen=True)
class UrlSet:
    """The images below an address; the classes are its sub-folders, if no image lies outside them.

    Attributes:
        modified: when each was changed (nanoseconds), as it was listed; 0 where the file system does not say.
    """

    name: str
    url: str
    names: Sequence[str]
    modified: Sequence[int]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        return self.url

    def read(self, position: int) -> Image.Image:
        """Returns the decoded file."""
        try:
            return decode_image(self.fetch(position).content)
        except OSError as error:
            raise DataError(f"it cannot be fetched ({error})") from error

    def fetch(self, position: int) -> StoredImage:
        """Returns the file."""
        files, folder = _connect(self.url)
        content = files.cat_file(f"{folder}/{self.names[position]}", end=MAX_FILE_BYTES + 1)
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
        DataError: fsspec, or what it needs for this address, is not installed; nothing is there, or no images.
    """
    url = spec.rstrip("/")
    if PurePosixPath(url).suffix in (".tar", ".csv", ".jsonl", ".parquet"):
        raise DataError(f"data '{spec}': of an address folders of images are read, not manifests or tar shards")
    files, folder = _connect(url)
    try:
        found: Mapping[str, Mapping[str, object]] = files.find(folder, detail=True)
    except (OSError, ImportError) as error:
        raise DataError(f"data '{spec}' cannot be listed ({' '.join(str(error).split())})") from error
    start = len(folder) + 1
    paths = {path[start:]: details for path, details in found.items() if path.startswith(f"{folder}/")}
    names = [name for name in paths if PurePosixPath(name).suffix.lower() in SUFFIXES and not _is_hidden(name)]
    names.sort(key=lambda name: name.split("/"))
    if not names:
        raise DataError(f"data '{spec}': there are no images ({', '.join(sorted(SUFFIXES))})")
    tops = [name.partition("/")[0] if "/" in name else None for name in names]
    classes, labels = number_labels([None] * len(tops) if None in tops else tops)
    return UrlSet(spec, url, names, [_read_time(paths[name]) for name in names], classes, labels)


def _connect(url: str) -> tuple[Any, str]:
    """Returns the file system of an address, which fsspec makes once, and the folder in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DataError(f"data '{url}' is an address: pip install 'indistill[urls]'") from error
    try:
        files, folder = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(f"data '{url}' cannot be read: {' '.join(str(error).split())}") from error
    return files, str(folder).rstrip("/")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


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
