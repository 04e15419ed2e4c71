"""What the routes share: the index in force, the batches, the threads and the figures."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from indistill.errors import DataError
from indistill.images import count_pixels, read_pixels
from indistill.preprocess import PixelArray
from indistill.retrieval.opening import Location
from indistill.retrieval.ranking import Hit
from indistill.retrieval.serve.batching import Batcher, Query
from indistill.retrieval.serve.limits import Room
from indistill.retrieval.serve.metrics import Metrics
from indistill.retrieval.serve.opened import Opened
from indistill.retrieval.serve.problems import Refusal
from indistill.retrieval.serve.reload import Generations
from indistill.retrieval.serve.settings import Settings
from indistill.retrieval.serve.thumbnails import make_thumbnail
from indistill.retrieval.store.catalogue import CatalogueItem
from indistill.retrieval.where import Where

THUMBNAILS_AT_WORK = 256  # some pages of results
GIANT = 16_000_000  # pixels; larger images are decoded one after the other, so that others need not wait for them
GIANTS_WAITING = 4
PATIENCE_S = 5.0  # for a search
Wanted = bytes | int


class Service:
    """An index that is being served.

    Args:
        folder: the index folder, or a collection of Milvus.
        settings: the limits.

    Attributes:
        settings: as given.
        metrics: the figures.
        generations: the index in force.
        batcher: where searches meet.
        searches: places for searches at work at once, from the end of the upload to the answer.

    Raises:
        IndexFolderError, ModelError: the index cannot be opened.
    """

    def __init__(self, folder: Location, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.generations = Generations(
            folder, settings.threads, 2 * settings.time_limit_s, self.metrics.observe_generation
        )
        self.batcher = Batcher(settings.batch_size, self.metrics.observe_batch)
        self.searches = Room(settings.queue_size, PATIENCE_S)
        self._thumbnails, self._giants = Room(THUMBNAILS_AT_WORK), Room(GIANTS_WAITING)
        cores = os.cpu_count() or 1
        self._decoders = ThreadPoolExecutor(cores, thread_name_prefix="decode")
        self._giant_decoder = ThreadPoolExecutor(1, thread_name_prefix="giant")
        self._painters = ThreadPoolExecutor(max(1, cores // 2), thread_name_prefix="thumbnail")
        self._follower: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to answer and to look for newer generations, in the running event loop."""
        self.batcher.start()
        following = self.generations.follow(self.settings.poll_s, self.metrics.observe_reload_failure)
        self._follower = asyncio.create_task(following)

    async def stop(self) -> None:
        """Ends, after the work that runs."""
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait([self._follower])
        await self.batcher.stop()
        for pool in (self._decoders, self._giant_decoder, self._painters):
            pool.shutdown(cancel_futures=True)
        self.generations.close()

    async def search(
        self, wanted: Wanted, k: int, threshold: float | None, where: Where | None
    ) -> tuple[Opened, list[Hit]]:
        """Returns the hits, and the generation that they are of.

        Args:
            wanted: an encoded image, or an id of the index.
            k: hits at most.
            threshold: the lowest score.
            where: a condition on the catalogue.

        Raises:
            Refusal: the image cannot be read, or there is no such id.
        """
        opened = self.generations.current
        if isinstance(wanted, int):
            await self.find_item(opened, wanted)
            query = Query(opened, wanted, k, threshold, where)
        else:
            query = Query(opened, await self._read(opened, wanted), k, threshold, where)
        return opened, await self.batcher.find(query)

    async def _read(self, opened: Opened, content: bytes) -> PixelArray:
        """Returns an upload as the model takes it, or raises Refusal."""
        self.batcher.arriving += 1
        try:
            pixels = await self._loop.run_in_executor(self._decoders, self._decode_small, opened, content)
        finally:
            self.batcher.arriving -= 1
        if pixels is not None:
            return pixels
        with self._giants.enter():
            return await self._loop.run_in_executor(self._giant_decoder, self._decode, opened, content)

    async def find_item(self, opened: Opened, item: int) -> CatalogueItem:
        """Returns an item, or raises Refusal."""
        found = await asyncio.to_thread(opened.find_item, item)  # Milvus may be far away
        if found is None:
            raise Refusal(404, f"the index has no image {item}")
        return found

    async def paint(self, opened: Opened, item: CatalogueItem, size: int) -> bytes:
        """Returns a JPEG of an item, no side longer than `size` pixels, or raises Refusal."""
        path = opened.index.root / item.path
        with self._thumbnails.enter():
            try:
                limit = self.settings.max_pixels
                return await self._loop.run_in_executor(self._painters, make_thumbnail, path, size, limit)
            except DataError as error:
                raise Refusal(404, f"image {item.id} cannot be shown: {error}") from error

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _decode_small(self, opened: Opened, content: bytes) -> PixelArray | None:
        return None if count_pixels(content) > GIANT else self._decode(opened, content)

    def _decode(self, opened: Opened, content: bytes) -> PixelArray:
        try:
            return read_pixels(content, opened.session.artefact.preprocessing, self.settings.max_pixels)
        except DataError as error:
            raise Refusal(422, f"the upload cannot be read: {error}") from error
