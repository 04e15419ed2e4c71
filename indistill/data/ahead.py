"""Work done ahead by threads, in order. Needs no torch."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_decoders() -> int:
    """Returns the number of threads that decode images: one for each core of this process, and four at least.

    Pillow decodes and resizes outside Python's lock, so that threads use all cores and need no copies of anything.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(4, cores)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int
) -> Iterator[Result]:
    """Yields the results of a function in the order of its items, worked out by threads before they are asked for.

    Args:
        function: called by several threads at once.
        items: taken one by one, `ahead` of the result that is asked for.
        workers: number of threads.
        ahead: results that wait at most, beside the one that is asked for.
    """
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
