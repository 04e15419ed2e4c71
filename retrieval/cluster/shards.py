"""A folder of shards: ordinary indexes with ids that no two of them share, and the file that says which are in force.

shards.json             the names of the shards in force, written last
shards-00000001/0000/   an index folder, which can be searched and verified by itself; those before stay until the next
                        build, for those who have them open
pending.chunks/         embeddings of a build that was cut off
lock                    held by the process that builds
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol, TypeVar

from indistill.errors import IndexFolderError
from indistill.files.bounded import read_bounded
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.files.formats import BUILD_AGAIN, SHARDS_FOLDER, require_format
from indistill.retrieval.cluster.runtime import fetch, list_places, require_ray, start_ray
from indistill.retrieval.index import Index
from indistill.retrieval.store.generations import SHARDS

GENERATION = re.compile(r"shards-\d{8}")
NAME = re.compile(r"shards-\d{8}/\d{4,}")
Answer = TypeVar("Answer")


def list_shards(folder: Path) -> list[Path] | None:
    """Returns the index folders of a folder of shards, by rising ids; None where it is none.

    Raises:
        IndexFolderError: it is damaged, or of another format.
    """
    try:
        text = read_bounded(folder / SHARDS)
    except OSError:
        return None
    try:
        content = json.loads(text)
        require_format(SHARDS_FOLDER, content["format"], f"the folder of shards {folder}", IndexFolderError)
        names = content["shards"]
        named = isinstance(names, list) and names and all(NAME.fullmatch(name) for name in names)
        if named and len(set(names)) == len(names):
            return [folder / name for name in names]
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise IndexFolderError(f"the folder of shards {folder} is damaged: its {SHARDS} cannot be read; {BUILD_AGAIN}")


def list_generations(folder: Path) -> dict[str, int]:
    """Returns the names of all generations of shards that lie in a folder, and their numbers."""
    names = [path.name for path in folder.iterdir() if GENERATION.fullmatch(path.name)]
    return {name: int(name.removeprefix("shards-")) for name in names}


def write_shards(folder: Path, names: Sequence[str]) -> None:
    """Puts shards in force, by their names relative to their folder."""
    with write_aside(folder / SHARDS) as stream:
        stream.write((json.dumps({"format": SHARDS_FOLDER.version, "shards": list(names)}, indent=2) + "\n").encode())
    move_into_place(name_aside(folder / SHARDS), folder / SHARDS)


class Shards(Protocol):
    """Opened shards, in this process or on a cluster."""

    def ask(self, question: Callable[[Index], Answer]) -> list[Answer]:
        """Returns the answer of each shard, in their order."""

    def close(self) -> None:
        """Closes all of them; nothing can be asked then."""


class LocalShards:
    """Shards opened in this process; a thread asks each."""

    def __init__(self, folders: Sequence[Path], threads: int) -> None:
        self._indexes = [Index(folder, threads) for folder in folders]
        self._pool = ThreadPoolExecutor(len(folders))

    def ask(self, question: Callable[[Index], Answer]) -> list[Answer]:
        """Returns the answer of each shard, in their order."""
        return list(self._pool.map(question, self._indexes))

    def close(self) -> None:
        """Closes the files."""
        self._pool.shutdown()
        for index in self._indexes:
            index.close()


class RayShards:
    """Shards opened by an actor each, on the nodes in turn; each node must have all the folders.

    An actor declares no CPU, for it waits most of its time: with one declared, more shards than CPUs would never open.
    One whose node is lost starts again on another.
    """

    def __init__(self, folders: Sequence[Path], threads: int) -> None:
        with ExitStack() as stack:
            stack.enter_context(start_ray())
            make = require_ray().remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(ShardActor)
            self._actors = [
                make.options(scheduling_strategy=place).remote(folder.resolve(), threads)
                for folder, place in zip(folders, cycle(list_places()), strict=False)
            ]
            self._stack = stack.pop_all()

    def ask(self, question: Callable[[Index], Answer]) -> list[Answer]:
        """Returns the answer of each shard, in their order."""
        answers: list[Answer] = fetch([actor.answer.remote(question) for actor in self._actors])
        return answers

    def list_nodes(self) -> list[str]:
        """Returns the id of the node of each shard."""
        nodes: list[str] = fetch([actor.get_node.remote() for actor in self._actors])
        return nodes

    def close(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            require_ray().kill(actor)
        self._stack.close()


class ShardActor:
    """A shard on a node, opened at the first question, so that a refusal reaches who asks."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._open = partial(Index, folder, threads)
        self._index: Index | None = None

    def answer(self, question: Callable[[Index], Any]) -> Any:  # noqa: ANN401 - whatever is asked
        """Returns what a question is answered with."""
        if self._index is None:
            self._index = self._open()
        return question(self._index)

    def get_node(self) -> str:
        """Returns the id of the node."""
        return str(require_ray().get_runtime_context().get_node_id())


def open_shards(folders: Sequence[Path], threads: int) -> Shards:
    """Opens shards on the cluster that RAY_ADDRESS names, or in this process where it names none."""
    return RayShards(folders, threads) if os.environ.get("RAY_ADDRESS") else LocalShards(folders, threads)
