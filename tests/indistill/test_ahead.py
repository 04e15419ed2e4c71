import threading
from collections.abc import Iterator

import pytest
import torch

from indistill.ahead import run_ahead


@pytest.fixture(autouse=True, params=[1, 2, 5])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_items_come_in_order_and_the_threads_are_given_back(threads: int) -> None:
    assert list(run_ahead(iter(range(50)))) == list(range(50))
    assert torch.get_num_threads() == threads


def test_the_next_item_is_made_while_the_caller_works(threads: int) -> None:
    second_is_made = threading.Event()

    def make() -> Iterator[int]:
        yield 1
        second_is_made.set()
        yield 2

    items = run_ahead(make())
    next(items)
    assert second_is_made.wait(timeout=5 if threads > 1 else 0.1) == (threads > 1)
    items.close()
    assert torch.get_num_threads() == threads


def test_the_threads_are_shared(threads: int) -> None:
    def make() -> Iterator[int]:
        for _ in range(3):
            yield torch.get_num_threads()

    seen = {(made, torch.get_num_threads()) for made in run_ahead(make())}
    assert seen == ({(1, 1)} if threads == 1 else {(threads // 2, threads - threads // 2)})


def test_an_exception_reaches_the_caller(threads: int) -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    items = run_ahead(make())
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert torch.get_num_threads() == threads
