"""Requests that come at the same time share one inference and one search."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from indistill.export.session import Embeddings
from indistill.preprocess import PixelArray
from indistill.retrieval.ranking import Hit
from indistill.retrieval.serve.opened import Opened
from indistill.retrieval.where import Where

LINGER_S = 0.002


@dataclass(frozen=True)
class Query:
    """What to look for: a resized image (S, S, 3) uint8, or an id of the index; in the index that resized it."""

    opened: Opened
    wanted: PixelArray | int
    k: int
    threshold: float | None
    where: Where | None


def answer_queries(queries: Sequence[Query]) -> list[list[Hit]]:
    """Returns the hits of each query: one inference for each model, one search for each kind of search."""
    hits: list[list[Hit]] = [[] for _ in queries]
    for opened in {id(query.opened): query.opened for query in queries}.values():
        rows = [row for row, query in enumerate(queries) if query.opened is opened]
        vectors = _embed(opened, [queries[row].wanted for row in rows])
        kinds: dict[str, list[int]] = {}
        for position, row in enumerate(rows):
            query = queries[row]
            kinds.setdefault(repr((query.k, query.threshold, query.where)), []).append(position)
        for positions in kinds.values():
            first = queries[rows[positions[0]]]
            found = opened.index.search(vectors[positions], first.k, where=first.where, threshold=first.threshold)
            for position, answer in zip(positions, found, strict=True):
                hits[rows[position]] = answer
    return hits


def _embed(opened: Opened, wanted: Sequence[PixelArray | int]) -> Embeddings:
    """Returns a row (D,) float32 for each image or id."""
    vectors = np.empty((len(wanted), opened.index.manifest.dimension), dtype=np.float32)
    images = [row for row, query in enumerate(wanted) if not isinstance(query, int)]
    if images:
        vectors[images] = opened.session.embed_pixels(np.stack([wanted[row] for row in images]))
    known = [row for row, query in enumerate(wanted) if isinstance(query, int)]
    if known:
        vectors[known] = opened.index.find_vectors([int(wanted[row]) for row in known])
    return vectors


class Batcher:
    """Collects queries while a batch is being computed, and hands them on together. Lives in one event loop.

    A query that comes alone goes at once. Only while others are known to be on their way (`arriving`) does a batch wait
    for them, two milliseconds at most.

    Args:
        batch_size: queries of one batch at most.
        observe: called with the size of each batch.
    """

    def __init__(self, batch_size: int, observe: Callable[[int], None]) -> None:
        self._batch_size, self._observe = batch_size, observe
        self._waiting: deque[tuple[Query, asyncio.Future[list[Hit]]]] = deque()
        self._came = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._task: asyncio.Task[None] | None = None
        self.arriving = 0  # requests whose image is being decoded

    @property
    def is_running(self) -> bool:
        """Whether searches are answered."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begins to answer, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends, after the batch that is being computed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for _, answer in self._waiting:
            answer.cancel()
        self._worker.shutdown()

    async def find(self, query: Query) -> list[Hit]:
        """Returns the hits of a query.

        Raises:
            IndistillError: the index cannot be used.
        """
        answer: asyncio.Future[list[Hit]] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        self._came.set()
        return await answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._collect()
            batch = [self._waiting.popleft() for _ in range(min(self._batch_size, len(self._waiting)))]
            batch = [(query, answer) for query, answer in batch if not answer.done()]  # its client may have gone
            if not batch:
                continue
            self._observe(len(batch))
            computed = loop.run_in_executor(self._worker, answer_queries, [query for query, _ in batch])
            await asyncio.wait([computed])
            error = computed.exception()
            for row, (_, answer) in enumerate(batch):
                if answer.done():
                    continue
                if error is None:
                    answer.set_result(computed.result()[row])
                else:
                    answer.set_exception(error)

    async def _collect(self) -> None:
        """Returns when there is a batch."""
        loop = asyncio.get_running_loop()
        deadline = None
        while len(self._waiting) < self._batch_size:
            self._came.clear()
            if not self._waiting:
                await self._came.wait()
                continue
            if self.arriving == 0:
                return
            deadline = deadline or loop.time() + LINGER_S
            try:
                async with asyncio.timeout_at(deadline):
                    await self._came.wait()
            except TimeoutError:
                return
