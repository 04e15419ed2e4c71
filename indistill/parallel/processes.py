"""What the processes of one training tell one another. With one process all of this does nothing.

Each process has its share of every batch. What the loss compares is gathered, so that it is the loss of the whole
batch; the gradients are averaged after each step. Both fit together by one rule: **the mean over processes of what each
one differentiates is the loss of the batch.**

DistributedDataParallel would keep the same rule, for one module with one forward; here each phase runs another part of
the student, with losses that learn beside it, and the gradients of small students go in one message.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from indistill.parallel.batch_norm import BatchNormOverProcesses, widen
from indistill.tensors import list_tensors

PATIENCE_S = 10.0  # of a process that waits to be ended
DOUBT_S = 1.0  # in which one is ended that failed as another was killed
Result = TypeVar("Result")

_sizes: ContextVar[tuple[int, ...]] = ContextVar("sizes", default=())  # images of each process, inside `share_batch`


def count_processes() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def get_rank() -> int:
    """Returns the number of this process among them, from 0."""
    return dist.get_rank() if count_processes() > 1 else 0


def is_first() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return get_rank() == 0


def on_one_machine() -> bool:
    """Returns whether all processes are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", count_processes())) >= count_processes()


def divide(images: int) -> tuple[int, ...]:
    """Returns how many of a batch's images each process has: numbers that differ by one at most."""
    count = count_processes()
    return tuple(images // count + (rank < images % count) for rank in range(count))


def find_share(images: int) -> slice:
    """Returns which images of a batch are this process's."""
    sizes, rank = divide(images), get_rank()
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def on_first(function: Callable[[], Result]) -> Result:
    """Returns the result of a function that the first process alone calls. If it fails, all are ended by that."""
    if count_processes() == 1:
        return function()
    box = [function() if is_first() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def exchange(own: Result) -> list[Result]:
    """Returns what each process gives, by rank."""
    if count_processes() == 1:
        return [own]
    box: list[Result | None] = [None] * count_processes()
    dist.all_gather_object(box, own)
    return box  # type: ignore[return-value]


@contextmanager
def go_first() -> Iterator[None]:
    """Lets one process of each machine through a block before the others: for files that the block may write."""
    first = count_processes() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not first:
        dist.barrier()
    yield
    if first and count_processes() > 1:
        dist.barrier()


def copy_from_first(module: nn.Module) -> None:
    """Gives a module's parameters and buffers the values that they have in the first process."""
    if count_processes() > 1:
        with torch.no_grad():
            for tensor in list_tensors(module).values():
                whole = tensor.contiguous()
                dist.broadcast(whole, src=0)
                tensor.copy_(whole)


@contextmanager
def share_batch(images: int) -> Iterator[None]:
    """A context in which this process computes its share of a batch: `gather` and batch norm see the whole of it.

    Args:
        images: of the whole batch.
    """
    if count_processes() == 1:
        yield
        return
    sizes = divide(images)
    token = _sizes.set(sizes)
    try:
        with BatchNormOverProcesses(sizes):
            yield
    finally:
        _sizes.reset(token)


def gather(rows: Tensor) -> Tensor:
    """Returns the rows (N, ...) of the whole batch, in its order, for those (n, ...) of this process's images.

    What is computed from them is the same in each process, and so counts as often as there are processes: see the rule
    above.
    """
    sizes = _sizes.get()
    if not sizes:
        return rows
    rows = widen(rows) if rows.is_floating_point() else rows
    gathered: Tensor = _Gather.apply(rows, sizes)  # type: ignore[no-untyped-call]
    return gathered


def weigh_share(loss: Tensor) -> Tensor:
    """Returns a mean over this process's images, weighed so that the mean over processes is that over all images."""
    sizes = _sizes.get()
    return loss * (len(sizes) * sizes[get_rank()] / sum(sizes)) if sizes else loss


def average(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Averages gradients over the processes, in place, and returns the average of a detached loss: that of the batch.

    Args:
        loss: a scalar.
        parameters: those that have a gradient have one in every process.
    """
    if count_processes() == 1:
        return loss
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([widen(g.reshape(-1)) for g in (*gradients, loss)])
    dist.all_reduce(flat)
    flat /= count_processes()
    for gradient, mean in zip(gradients, torch.split(flat[:-1], [g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))
    return flat[-1]


def claim_failure(*, doubtful: bool) -> bool:
    """Returns whether this process is the first that fails, and so the one that says why.

    Any other waits to be ended by whoever started the processes: it may have failed because the first one did, and the
    exit code is to be that one's.

    Args:
        doubtful: whether the cause may be that another process was killed, and can say nothing.
    """
    if count_processes() == 1:
        return True
    if doubtful:
        time.sleep(DOUBT_S)
    wait = timedelta(seconds=PATIENCE_S)
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=wait, wait_for_workers=False
        )
        if store.add("indistill/failures", 1) == 1:
            return True
    except RuntimeError:  # the process that keeps the count has ended
        pass
    time.sleep(PATIENCE_S)
    return False


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:  # noqa: ANN401 - torch's own signature
        largest, rank = max(sizes), dist.get_rank()
        ctx.share = find_share(sum(sizes))
        sent = rows.new_zeros(largest, *rows.shape[1:])  # all send as much as the one that has most
        sent[: sizes[rank]] = rows
        received = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(received, sent)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ANN401
        # Each process differentiates the same loss by its own rows alone: as often as there are processes, so that
        # their mean is the gradient of one loss. Nothing is sent.
        return gradient[ctx.share] * dist.get_world_size(), None
