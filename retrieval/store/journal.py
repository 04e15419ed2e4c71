"""Embeddings that were made but are not in a generation yet, so that a change that is cut off embeds nothing twice.

A file of fixed records after one line that says whose they are: the SHA-256 of an image file, its vector, and a
checksum over both, so that a record that was half written is told from a whole one.
"""

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from indistill.export.session import Embeddings
from indistill.files.bounded import require_regular

MAX_HEADER = 128


def make_record(dimension: int) -> np.dtype[np.void]:
    """Returns the type of a record."""
    return np.dtype([("sha256", "V32"), ("vector", "<f4", (dimension,)), ("crc", "<u4")])


class Journal(Mapping[str, Embeddings]):
    """The vectors (D,) of a model by the SHA-256 of the image file, kept in a file as they come.

    Use `open_journal`, which closes it.
    """

    def __init__(self, path: Path, model_sha256: str, dimension: int) -> None:
        self._record = make_record(dimension)
        self._vectors: dict[str, Embeddings] = {}
        header = f"indistill vectors {dimension} {model_sha256}\n".encode()
        if path.exists():
            require_regular(path)
        self._stream = path.open("r+b" if path.exists() else "w+b")
        if self._stream.read(len(header)) != header:  # new, or of another model
            self._stream.seek(0)
            self._stream.truncate(0)
            self._stream.write(header)
            self._stream.flush()
            return
        end, size = len(header), self._record.itemsize
        while len(content := self._stream.read(size)) == size:  # to the first that is damaged, however large the file
            record = np.frombuffer(content, dtype=self._record)[0]
            if zlib.crc32(content[:-4]) != record["crc"]:
                break
            self._vectors[record["sha256"].tobytes().hex()] = record["vector"].copy()
            end += size
        self._stream.seek(end)
        self._stream.truncate(end)

    def __getitem__(self, sha256: str) -> Embeddings:
        return self._vectors[sha256]

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._vectors

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def keep(self, hashes: Sequence[str], vectors: Embeddings) -> None:
        """Adds the vectors (B, D) of files to the journal; they are on the disk when this returns."""
        records = np.zeros(len(hashes), dtype=self._record)
        for record, sha256, vector in zip(records, hashes, vectors, strict=True):
            record["sha256"], record["vector"] = np.void(bytes.fromhex(sha256)), vector
            record["crc"] = zlib.crc32(record.tobytes()[:-4])
        self._stream.write(records.tobytes())
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._vectors.update(zip(hashes, vectors, strict=True))

    def close(self) -> None:
        """Closes the file, which stays."""
        self._stream.close()


@contextmanager
def open_journal(path: Path, model_sha256: str, dimension: int) -> Iterator[Journal]:
    """Yields the journal of a file, with the whole records that it holds for a model; those of another model go.

    A journal without vectors does not stay.
    """
    journal = Journal(path, model_sha256, dimension)
    try:
        yield journal
    finally:
        journal.close()
        if not journal:
            path.unlink()


def count_kept(path: Path, model_sha256: str | None = None) -> int:
    """Returns how many embeddings the journal of a file holds, none where there is no such file.

    Args:
        path: of the journal.
        model_sha256: of the model whose embeddings count; default of any.
    """
    try:
        require_regular(path)
        with path.open("rb") as stream:
            header = stream.readline(MAX_HEADER)
            kind, unit, dimension, owner = header.split()
            wanted = (b"indistill", b"vectors", owner if model_sha256 is None else model_sha256.encode())
            if (kind, unit, owner) != wanted:
                return 0
            return (os.fstat(stream.fileno()).st_size - len(header)) // make_record(int(dimension)).itemsize
    except (OSError, ValueError):
        return 0


@contextmanager
def explain_interruption(path: Path) -> Iterator[None]:
    """Notes on Ctrl-C how many embeddings the journal of a file keeps, for the line that `cli/main.py` prints."""
    try:
        yield
    except KeyboardInterrupt as error:
        if kept := count_kept(path):
            noun = "embedding is" if kept == 1 else "embeddings are"
            error.add_note(f"{kept:,} {noun} kept: the same command goes on from there")
        raise
