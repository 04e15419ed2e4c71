"""Tar shards in WebDataset form, read where they lie: nothing is extracted. Needs no torch.

The members `KEY.jpg` (or another image) and `KEY.cls`, `KEY.json` or `KEY.txt` are an image and its label; the key ends
at the first dot after the last slash. The headers are read once, then each image by its place in the file, in any order
and by several threads. The `webdataset` package reads shards as streams, shuffled through a buffer, so that the order
depends on the number of workers, and needs torch: neither would do here.

Reference: Aizman, Maltby, Breuel, "High Performance I/O For Large Scale Deep Learning" (arXiv 2001.01858).
"""

import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indistill.data.sets import StoredImage, number_labels
from indistill.errors import DataError
from indistill.files.bounded import require_regular
from indistill.files.documents import read_json
from indistill.images import MAX_FILE_BYTES, SUFFIXES, decode_image

LABELS = ("cls", "json", "txt")  # the first one that is there is taken
MAX_LABEL_BYTES = 2**20
MAX_HEADER_BYTES = 2 * MAX_LABEL_BYTES
MAX_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
BLOCK = bytes(512)


@dataclass(frozen=True)
class Member:
    """Where an image lies: the shard, and the bytes in it."""

    shard: Path
    offset: int
    size: int


@dataclass(frozen=True)
class ShardSet:
    """The images of tar shards, in the order of the shards and of the members in each."""

    name: str
    folder: Path
    names: Sequence[str]
    members: Sequence[Member]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def root(self) -> str:
        """The folder of the shards."""
        return str(self.folder)

    def read(self, position: int) -> Image.Image:
        """Returns the decoded member."""
        try:
            return decode_image(self.fetch(position).content)
        except OSError as error:
            raise DataError(f"its shard cannot be read ({error.strerror})") from error

    def fetch(self, position: int) -> StoredImage:
        """Returns the member."""
        member = self.members[position]
        if member.size > MAX_FILE_BYTES:
            raise DataError(f"{member.size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        with member.shard.open("rb") as stream:
            stream.seek(member.offset)
            return StoredImage(stream.read(member.size), os.fstat(stream.fileno()).st_mtime_ns)


class _HeaderReader(io.BufferedReader):
    """A stream for `tarfile`, which reads a header of any length that it claims into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Returns bytes. Raises ValueError where more are asked for than a header or a label has."""
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        return super().read(size)


def is_shard_pattern(spec: str) -> bool:
    """Returns whether a spec names several shards by `{000000..000009}`, or by `*` in the file name."""
    return spec.endswith(".tar") and ("*" in spec or RANGE.search(spec) is not None)


def is_shard_folder(folder: Path) -> bool:
    """Returns whether a folder holds shards, and neither images nor folders beside them."""
    if not folder.is_dir():
        return False
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    others = any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in entries)
    return not others and any(path.suffix == ".tar" for path in entries)


def open_shards(spec: str) -> ShardSet:
    """Returns the images of a shard, of a folder of shards, or of a pattern.

    Raises:
        DataError: a shard is missing, damaged, compressed or without images.
    """
    shards = [path.resolve() for path in _list_shards(spec)]
    root = Path(os.path.commonpath([shard.parent for shard in shards]))
    names: list[str] = []
    members: list[Member] = []
    labels: list[str | None] = []
    for shard in shards:
        prefix = shard.relative_to(root).as_posix()
        for name, member, label in _scan_shard(shard):
            names.append(f"{prefix}/{name}")
            members.append(member)
            labels.append(label)
    classes, numbers = number_labels(labels)
    return ShardSet(spec, root, names, members, classes, numbers)


def _list_shards(spec: str) -> list[Path]:
    if Path(spec).is_dir():
        return sorted(path for path in Path(spec).glob("*.tar") if not path.name.startswith("."))
    if Path(spec).exists():
        return [Path(spec)]
    paths = [Path(item) for item in _expand_ranges(spec)]
    found = [file for path in paths for file in (sorted(path.parent.glob(path.name)) if "*" in path.name else [path])]
    if not found:
        raise DataError(f"data '{spec}': no file has such a name")
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise DataError(f"data '{spec}': {len(missing)} of {len(found)} shards are missing, the first is {missing[0]}")
    return found


def _expand_ranges(spec: str) -> list[str]:
    match = RANGE.search(spec)
    if match is None:
        return [spec]
    first, last = match.groups()
    if not int(first) <= int(last) < int(first) + MAX_SHARDS:
        raise DataError(f"data '{spec}': {match[0]} is no range from a smaller number to a larger one")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [
        expanded
        for number in numbers
        for expanded in _expand_ranges(spec[: match.start()] + number + spec[match.end() :])
    ]


def _scan_shard(shard: Path) -> list[tuple[str, Member, str | None]]:
    """Returns name, place and label of each image of a shard."""
    images: dict[str, tuple[str, Member]] = {}
    labels: dict[tuple[str, str], str] = {}
    try:
        size_bytes = require_regular(shard)
        with _HeaderReader(io.FileIO(shard)) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for info in tar:
                if not info.isreg() or info.issparse():
                    continue
                if not 0 <= info.size <= size_bytes - info.offset_data:
                    raise ValueError(f"{info.name!r} has {info.size} bytes, more than the shard")
                name, key, suffix = _split_name(shard, info.name)
                if f".{suffix.lower()}" in SUFFIXES:
                    if key in images:
                        raise DataError(f"shard {shard}: {images[key][0]} and {name} have the same key {key}")
                    images[key] = name, Member(shard, info.offset_data, info.size)
                elif suffix in LABELS:
                    labels[key, suffix] = _read_label(shard, tar, info)
            end = tar.offset
        with shard.open("rb") as stream:
            stream.seek(end)
            if stream.read(len(BLOCK)) != BLOCK:
                raise DataError(f"shard {shard} is damaged: it has no end mark at byte {end}, as if it were cut off")
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"shard {shard} is damaged, compressed or no tar file ({error})") from error
    if not images:
        raise DataError(f"shard {shard} holds no images ({', '.join(sorted(SUFFIXES))})")
    return [
        (name, member, next((labels[key, kind] for kind in LABELS if labels.get((key, kind))), None))
        for key, (name, member) in images.items()
    ]


def _split_name(shard: Path, name: str) -> tuple[str, str, str]:
    """Returns a member's name, its key and its suffix."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise DataError(f"shard {shard}: the member name {name!r} leads out of it")
    stem, _, suffix = path.name.partition(".")
    return path.as_posix(), (path.parent / stem).as_posix(), suffix


def _read_label(shard: Path, tar: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    """Returns the label in a member, or the empty string."""
    stream = tar.extractfile(info)
    if stream is None or info.size > MAX_LABEL_BYTES:
        raise DataError(f"shard {shard}: {info.name} has {info.size:,} bytes, too many for a label")
    try:
        text = stream.read().decode("utf-8").strip()
        value = read_json(text) if info.name.endswith(".json") else text
    except ValueError as error:
        raise DataError(f"shard {shard}: {info.name} cannot be read as a label ({error})") from error
    if isinstance(value, dict):
        value = value.get("label")
    if value is None:
        return ""
    if not isinstance(value, str | int):
        raise DataError(f"shard {shard}: {info.name} is not a label: a text, a number, or an object with a 'label'")
    return str(value)
