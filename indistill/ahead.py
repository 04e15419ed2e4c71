"""Work done one item ahead, in a thread, while the caller works on the item before."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def run_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items of an iterator, each made while the caller works on the one before.

    PyTorch's threads are shared out, half to each side, until the last item. With a single thread there is nothing to
    share, and the items are made when they are asked for. Their order is the same in both cases. An exception of the
    iterator is raised where its item would have come.
    """
    threads = torch.get_num_threads()
    if threads < 2:
        yield from items
        return
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads // 2,)) as pool:
        # Started before this thread takes its share: some libraries keep one number for all threads, the last one set.
        pool.submit(torch.get_num_threads).result()
        torch.set_num_threads(threads - threads // 2)
        upcoming = pool.submit(next, items, None)
        try:
            while (item := upcoming.result()) is not None:
                upcoming = pool.submit(next, items, None)
                yield item
        finally:
            torch.set_num_threads(threads)
