"""Where an index in Milvus lies, as `URI#collection`, and what this machine keeps for it. Needs no pymilvus."""

import hashlib
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from indistill.errors import InputError, escape_text

SERVER = re.compile(r"(?:https?|tcp|unix)://?", re.IGNORECASE)  # a Path makes one slash of two
PORTS = {"http": 19530, "https": 443}  # pymilvus's defaults
HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
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

    def is_same(self, other: "MilvusLocation") -> bool:
        """Returns whether another location is this collection: by a file's path, or a server's addresses and port."""
        if self.collection != other.collection or self.is_embedded != other.is_embedded:
            return False
        if self.is_embedded:
            return Path(self.uri).resolve() == Path(other.uri).resolve()
        mine, theirs = urlsplit(_write_server(self.uri)), urlsplit(_write_server(other.uri))
        if (mine.port, mine.path) != (theirs.port, theirs.path):
            return False
        return bool(_find_addresses(mine) & _find_addresses(theirs))


def name_collection(uri: str, collection: str) -> MilvusLocation:
    """Returns the location of a collection.

    Args:
        uri: `http://host:19530`, with `/database` if it is not the default one, or a file of Milvus Lite that ends
            in `.db`.
        collection: letters, digits and underscores, no digit first.

    Raises:
        InputError: one of them cannot be.
    """
    shown = escape_text(f"{uri}#{collection}")
    if not is_milvus_uri(uri):
        raise _refuse(uri)
    if not COLLECTION.fullmatch(collection):
        raise InputError(f"'{shown}': a collection's name has letters, digits and underscores, and no digit first")
    return MilvusLocation(_write_server(uri) if SERVER.match(uri) else uri, collection)


def is_milvus_uri(uri: str) -> bool:
    """Returns whether a text is the address of a server, or the name of a Milvus Lite file."""
    return bool(SERVER.match(uri)) or (uri.endswith(".db") and "://" not in uri)


def _write_server(uri: str) -> str:
    """Returns the one form that all addresses of a server have in common: with its port, in lower case, no slash."""
    scheme, _, rest = uri.partition(":")
    scheme = {"tcp": "http"}.get(scheme.lower(), scheme.lower())
    if scheme not in PORTS:
        raise _refuse(uri)
    try:
        parts = urlsplit(f"{scheme}://{rest.lstrip('/')}")
        port = PORTS[scheme] if parts.port is None else parts.port
    except ValueError as error:  # a port such as 99999, or half an IPv6 address
        raise _refuse(uri, str(error)) from error
    host, database = parts.hostname or "", parts.path.strip("/")
    if not HOST.fullmatch(host):
        raise _refuse(uri, f"'{escape_text(host)}' is no host" if host else "it names no host")
    if not port:
        raise _refuse(uri, "0 is no port")
    if parts.query or (database and not COLLECTION.fullmatch(database)):
        raise _refuse(uri, "after the port there may be /DATABASE")
    user, sign, _ = parts.netloc.rpartition("@")
    named = f"[{host}]" if ":" in host else host
    path = "" if database in ("", "default") else f"/{database}"
    return f"{scheme}://{user}{sign}{named}:{port}{path}"


def _find_addresses(server: SplitResult) -> set[object]:
    """Returns the name of a server's host, and the addresses that it has, if any."""
    host = server.hostname or ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    return {host, *(address[0] for *_, address in found)}


def _refuse(uri: str, reason: str = "") -> InputError:
    why = f" ({reason})" if reason else ""
    return InputError(f"'{escape_text(uri)}' is no address of Milvus{why}: give http://HOST:19530, or a FILE.db")
