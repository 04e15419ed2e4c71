"""A newer generation is taken up while the older one answers."""

import asyncio
import logging
from collections.abc import Callable

from indistill.errors import IndistillError
from indistill.retrieval.opening import Location
from indistill.retrieval.serve.opened import Opened, open_generation, read_stamp

LOGGER = logging.getLogger("indistill.serve")


class Generations:
    """The generation in force, and the task that looks for a newer one.

    Args:
        folder: the index folder, or a collection of Milvus.
        threads: of ONNX Runtime.
        keep_s: seconds that an older generation stays open, for the requests that have it.
        on_change: called with each generation that is taken up, the first one too.

    Attributes:
        current: what answers now. A request takes it once and keeps it to its end.

    Raises:
        IndexFolderError, ModelError: the first generation cannot be opened.
    """

    def __init__(self, folder: Location, threads: int, keep_s: float, on_change: Callable[[Opened], None]) -> None:
        self._folder, self._threads, self._keep_s, self._on_change = folder, threads, keep_s, on_change
        self._stamp = read_stamp(folder)  # before opening: what comes meanwhile is seen as new
        self.current = open_generation(folder, threads)
        self._retired: list[Opened] = []
        on_change(self.current)

    async def follow(self, poll_s: float, on_failure: Callable[[], None]) -> None:
        """Looks for a newer generation for ever.

        One that cannot be opened is logged, counted by `on_failure`, and passed over until it changes.
        """
        while True:
            await asyncio.sleep(poll_s)
            try:
                stamp = await asyncio.to_thread(read_stamp, self._folder)
            except IndistillError:
                continue  # between two states of the folder, or gone: what is open still answers
            if stamp == self._stamp:
                continue
            self._stamp = stamp
            older = self.current
            try:
                self.current = await asyncio.to_thread(open_generation, self._folder, self._threads, older.session)
            except IndistillError as error:
                on_failure()
                LOGGER.error("the newer generation is not served, the older one goes on: %s", error)
                continue
            self._retired.append(older)
            asyncio.get_running_loop().call_later(self._keep_s, self._close_oldest)
            self._on_change(self.current)
            manifest = self.current.index.manifest
            LOGGER.info("now serving generation %d, %d images", manifest.generation, manifest.items)

    def close(self) -> None:
        """Closes all that is open."""
        for opened in (self.current, *self._retired):
            opened.index.close()
        self._retired.clear()

    def _close_oldest(self) -> None:
        if self._retired:
            self._retired.pop(0).index.close()
