"""Calls to Milvus: with a time limit, given again with back-off while the server is away, and errors in one line."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from indistill.errors import IndexFolderError, InputError, describe_error
from indistill.retrieval.milvus.location import MilvusLocation

if TYPE_CHECKING:
    from tenacity import RetryCallState

PATIENCE_S = 15.0  # how long a server may be away, as while it starts anew
CALL_S = 60.0  # for one call
TOKEN_VARIABLE = "INDISTILL_MILVUS_TOKEN"
AWAY = 2  # pymilvus's code where it cannot connect, or lost the connection
MISSING = 100  # collection not found
LITE_FILES = ("LOCK", "collections")  # in each folder of Milvus Lite
RELEASED = 101  # not in memory, as after a restart of Milvus Lite
Row = Mapping[str, Any]


def require_extra(location: MilvusLocation) -> None:
    """Raises InputError if a package of the extra `milvus` is missing."""
    needed = ["pymilvus", "tenacity", *(["milvus_lite"] if location.is_embedded else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{location} needs {', '.join(missing)}, which this installation lacks: pip install 'indistill[milvus]'"
        )


class Connection:
    """A client of Milvus that connects when it is first used, and anew after the server was away. Close it.

    Args:
        location: the collection that calls are about.
        token: as `user:password`, where the server asks for it.

    Raises:
        InputError: a package is missing.
    """

    def __init__(self, location: MilvusLocation, token: str = "") -> None:
        require_extra(location)
        self.location, self._token = location, token
        self._client: Any = None
        self._closed = False
        self._lock = Lock()

    def call(self, method: str, **arguments: object) -> Any:  # noqa: ANN401 - what pymilvus returns
        """Returns what a method of pymilvus's client returns for the collection.

        Raises:
            IndexFolderError: no server answers, or it refuses.
        """
        name = self.location.collection
        return self._try(lambda client: getattr(client, method)(collection_name=name, timeout=CALL_S, **arguments))

    def prepare(self, method: str, **arguments: object) -> Any:  # noqa: ANN401
        """Returns a schema or index parameters to fill in; these need no server."""
        return self._try(lambda client: getattr(client, method)(**arguments))

    def has_collection(self) -> bool:
        """Returns whether the collection exists."""
        return bool(self.call("has_collection"))

    def scan(self, condition: str, fields: list[str], batch: int) -> Iterator[list[Row]]:
        """Yields all rows that meet a condition, in batches, by rising id.

        Args:
            condition: of Milvus; empty for all.
            fields: of the rows; with `id`.
            batch: rows of a batch, 16,384 at most.
        """
        last, iterator = -1, None

        def fetch(client: Any) -> list[Row]:  # noqa: ANN401
            nonlocal iterator
            if iterator is None or iterator[0] is not client:  # connected anew: go on where it broke off
                rest = f"id > {last}" + (f" and ({condition})" if condition else "")
                made = client.query_iterator(
                    self.location.collection, batch_size=batch, filter=rest, output_fields=fields, timeout=CALL_S
                )
                iterator = (client, made)
            rows: list[Row] = iterator[1].next()
            return rows

        while rows := self._try(fetch):
            last = max(row["id"] for row in rows)
            yield sorted(rows, key=lambda row: row["id"])

    def close(self) -> None:
        """Ends the connection for good."""
        self._closed = True
        self._leave(self._client)

    def _leave(self, client: Any) -> None:  # noqa: ANN401
        """Closes a client, unless another thread has done so."""
        with self._lock:
            if client is not None and client is self._client:
                self._client = None
                client.close()

    def _try(self, use: Callable[[Any], Any]) -> Any:  # noqa: ANN401
        import tenacity
        from grpc import RpcError
        from pymilvus.exceptions import MilvusException

        client: Any = None

        def attempt() -> Any:  # noqa: ANN401
            nonlocal client
            client = None
            client = self._connect()
            return use(client)

        def is_passing(error: BaseException) -> bool:
            left = client is not self._client and isinstance(error, (MilvusException, ValueError))
            return _is_away(error) or _is_released(error) or _is_race(error) or (left and not self._closed)

        def recover(failed: "RetryCallState") -> None:
            """Loads a collection that is not in memory; else connects anew, as a client may not find a server again."""
            error = failed.outcome.exception() if failed.outcome is not None else None
            if error is not None and _is_released(error):
                self._connect().load_collection(self.location.collection, timeout=CALL_S)
            elif error is not None and not _is_race(error):
                self._leave(client)

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_passing),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=3),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            before_sleep=recover,
            reraise=True,
        )
        try:
            return attempts(attempt)
        except (MilvusException, RpcError) as error:
            raise self._explain(error) from error

    def _connect(self) -> Any:  # noqa: ANN401
        from pymilvus import MilvusClient

        with self._lock:
            if self._closed:
                raise ValueError(f"the connection to {self.location} is closed")
            if self._client is None:
                for name in ("pymilvus", "pymilvus.milvus_client", "milvus_lite"):  # what it logs is raised too
                    logging.getLogger(name).setLevel(logging.CRITICAL + 1)
                self._client = MilvusClient(self.location.uri, token=self._token, timeout=PATIENCE_S)
            return self._client

    def _explain(self, error: Exception) -> IndexFolderError:
        location = self.location
        if getattr(error, "code", None) == MISSING:
            return IndexFolderError(
                f"{location.uri} has no collection '{location.collection}': make it by 'indistill index push INDEX "
                f"--to {location.uri} --collection {location.collection}'"
            )
        if location.is_embedded and "Open local milvus failed" in str(error):
            return IndexFolderError(
                f"{location.uri} cannot be opened: another process has it open, or it cannot be written; for "
                f"several processes run 'milvus-lite server --data-dir {location.uri}' and use its address"
            )
        if _is_away(error):
            return IndexFolderError(
                f"no Milvus server answers at {location.uri} (tried for {PATIENCE_S:.0f} s): start it, or mend the "
                f"address; a server with passwords needs {TOKEN_VARIABLE}=USER:PASSWORD"
            )
        reason = getattr(error, "message", "") or describe_error(error)
        return IndexFolderError(f"Milvus at {location} refuses: {' '.join(str(reason).split())[:300]}")


def require_file(location: MilvusLocation) -> None:
    """Raises IndexFolderError if a file of Milvus Lite does not exist, or is something else; opening would make it."""
    if location.is_embedded and not os.path.exists(location.uri):  # noqa: PTH110 - where a Path raises, it says no
        raise IndexFolderError(
            f"{location.uri} does not exist: make it by 'indistill index push INDEX --to {location.uri} --collection "
            f"{location.collection}'"
        )
    require_place(location)


def require_place(location: MilvusLocation) -> None:
    """Raises IndexFolderError if what is where a file of Milvus Lite is to be is something else, or cannot be made.

    Milvus Lite itself takes any folder, and writes its own into it.
    """
    path = Path(location.uri)
    if not location.is_embedded or all(os.path.exists(path / name) for name in LITE_FILES):  # noqa: PTH110
        return
    if os.path.exists(path):  # noqa: PTH110
        raise IndexFolderError(
            f"{path} exists and is not of Milvus Lite, whose .db is a folder of its own: name another"
        )
    if not os.path.isdir(path.parent):  # noqa: PTH112
        raise IndexFolderError(f"{path} cannot be made: there is no folder {path.parent}")


def _is_released(error: BaseException) -> bool:
    return getattr(error, "code", None) == RELEASED


def _is_race(error: BaseException) -> bool:
    """Returns whether two clients changed the properties of a collection at once, through one file of Milvus Lite."""
    return "schema.json.tmp" in str(error)


def _is_away(error: BaseException) -> bool:
    from grpc import RpcError, StatusCode
    from pymilvus.exceptions import MilvusException

    lost = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED)
    code = getattr(error, "code", None)
    if isinstance(error, RpcError):
        return callable(code) and code() in lost
    return isinstance(error, MilvusException) and (code == AWAY or code in lost)
