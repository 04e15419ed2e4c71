"""Where an index in Milvus lies, as `URI#collection`, and what this machine keeps for it. Needs no pymilvus."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from indistill.errors import InputError, escape_text

SERVER = re.compile(r"(?:https?|tcp|unix)://?")  # a Path makes one slash of two
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
CACHE = Path("~/.cache/indistill")


@dataclass(frozen=True)
class MilvusLocation:
    """A collection of a Milvus server, or of an embedded Milvus Lite file; its text is `URI#collection`."""

    uri: str
    collection: str

    def __str__(self) -> str:
        return f"{self.uri}#{self.collection}"

    @property
    def is_embedded(self) -> bool:
        """Whether it is a file of Milvus Lite, which one process opens at a time."""
        return not SERVER.match(self.uri)

    @property
    def work(self) -> Path:
        """The folder of this machine for changes of the collection: the lock, and embeddings that are not sent yet."""
        uri = str(Path(self.uri).resolve()) if self.is_embedded else self.uri
        name = hashlib.sha256(f"{uri}#{self.collection}".encode()).hexdigest()[:16]
        return CACHE.expanduser() / "milvus" / name


def name_collection(uri: str, collection: str) -> MilvusLocation:
    """Returns the location of a collection.

    Args:
        uri: `http://host:19530`, or a file of Milvus Lite that ends in `.db`.
        collection: letters, digits and underscores, no digit first.

    Raises:
        InputError: one of them cannot be.
    """
    shown = escape_text(f"{uri}#{collection}")
    if not is_milvus_uri(uri):
        raise InputError(f"'{escape_text(uri)}' is no address of Milvus: give http://HOST:19530, or a FILE.db")
    if not COLLECTION.fullmatch(collection):
        raise InputError(f"'{shown}': a collection's name has letters, digits and underscores, and no digit first")
    return MilvusLocation(re.sub(r"^(\w+):/+", r"\1://", uri) if SERVER.match(uri) else uri, collection)


def is_milvus_uri(uri: str) -> bool:
    """Returns whether a text is the address of a server, or the name of a Milvus Lite file."""
    return bool(SERVER.match(uri)) or uri.endswith(".db")
