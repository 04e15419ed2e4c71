"""What stops a training, in one line: a loss that is not finite, memory that is not enough, Ctrl-C."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from indistill.errors import TrainingError
from indistill.training.checkpoint import read_position

GPU_CHECK_EVERY = 50  # reading a loss waits for the GPU


class LossWatch:
    """Looks for losses that are not finite: at once on the CPU, every 50 batches elsewhere, where reading one waits."""

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else GPU_CHECK_EVERY
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> int | None:
        """Takes the detached loss of a batch; returns what `check` does if it is time to look, else None."""
        if self._every == 1:
            return None if math.isfinite(loss.item()) else 0
        self._losses.append(loss)
        return self.check() if len(self._losses) >= self._every else None

    def check(self) -> int | None:
        """Returns how many batches ago the first loss that is not finite was, 0 for the last one, or None."""
        if not self._losses:
            return None
        bad = torch.stack(self._losses).isfinite().logical_not().nonzero()
        count, self._losses = len(self._losses), []
        return count - 1 - int(bad[0]) if len(bad) else None


def describe_batch(images: Tensor, gradients: list[Tensor]) -> str:
    """Returns the statistics of a batch that went wrong, and the norm of its gradients where they are known."""
    text = f"its images go from {float(images.min()):.4g} to {float(images.max()):.4g}, mean {float(images.mean()):.4g}"
    return f"{text}; gradient norm {float(get_total_norm(gradients)):.4g}" if gradients else text


@contextmanager
def explain_failure(batch_size: int) -> Iterator[None]:
    """Turns a lack of memory into one line that names a smaller batch.

    Raises:
        TrainingError: the memory was not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _lack_memory(batch_size) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # how PyTorch's CPU allocator says it
            raise
        raise _lack_memory(batch_size) from error


@contextmanager
def explain_interruption(checkpoints: Path, steps: int) -> Iterator[None]:
    """Notes on Ctrl-C how to go on, for the line that `cli/main.py` prints.

    Args:
        checkpoints: the folder of the training's checkpoints.
        steps: batches in an epoch.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        position = read_position(checkpoints)
        if position is None:
            error.add_note("there is no checkpoint yet: the same command with --resume begins with the first epoch")
        else:
            error.add_note(f"the same command with --resume goes on from epoch {position // steps + 1}")
        raise


def _lack_memory(batch_size: int) -> TrainingError:
    if batch_size < 4:
        return TrainingError(f"the memory is not enough for batches of {batch_size} images: use a smaller --image-size")
    return TrainingError(
        f"the memory is not enough for batches of {batch_size} images: try --batch-size {batch_size // 2}"
    )
