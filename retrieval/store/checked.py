"""Whether the FAISS file of an index has its checksum: found out before FAISS, which trusts what it reads, reads it.

To hash a large file takes seconds, a search a part of one. So the hash of a large file is noted in the user's cache,
which no one writes who hands an index folder on, by what changes with the file: its inode, size and times.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from indistill.files.bounded import read_bounded, require_regular
from indistill.files.hashing import hash_file

NOTES = Path("~/.cache/indistill/checked")
NOTED_BYTES = 16 * 2**20  # smaller files are hashed each time, in some hundredths of a second


def hash_once(path: Path) -> str:
    """Returns the SHA-256 of a file; that of a large file as it was noted, if the file is the same since.

    Raises:
        OSError: there is no such file, it cannot be read, or is none that ends.
    """
    if require_regular(path) < NOTED_BYTES:
        return hash_file(path)
    note, before = _name_note(path), _describe(path)
    with suppress(OSError):
        text = read_bounded(note).decode("ascii", "replace")
        if text.startswith(before):
            return text.removeprefix(before)
    sha256 = hash_file(path)
    if _describe(path) == before:
        note_hash(path, sha256)
    return sha256


def note_hash(path: Path, sha256: str) -> None:
    """Notes the SHA-256 of a file of an index, if it is large; where the cache cannot be written, nothing is noted."""
    with suppress(OSError):
        if require_regular(path) < NOTED_BYTES:
            return
        note = _name_note(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        draft = note.with_suffix(f".{os.getpid()}")
        draft.write_text(_describe(path) + sha256, encoding="ascii")
        draft.replace(note)


def _name_note(path: Path) -> Path:
    """Returns where the hash is noted: one place for the generations of an index."""
    index = os.fsencode(path.resolve().parents[2])
    return NOTES.expanduser() / hashlib.sha256(index).hexdigest()


def _describe(path: Path) -> str:
    known = path.stat()
    return f"{known.st_dev} {known.st_ino} {known.st_size} {known.st_mtime_ns} {known.st_ctime_ns} "
