"""Batch norm by the statistics of a batch that several processes share.

PyTorch's SyncBatchNorm does this on GPUs alone, and replaces modules. Here the modules stay as they are: what they call
is intercepted, so that any network is trained, saved, traced and folded as in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class BatchNormOverProcesses(TorchFunctionMode):
    """A context in which every batch norm that normalises by its batch takes the whole batch's mean and variance.

    Running statistics are kept as one process would keep them. All processes must run the same layers in the same
    order.

    Args:
        sizes: images of the batch that each process has.

    Reference: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1; the mean and variance of parts are put
    together as by Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if func is F.batch_norm:
            return self.normalise(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def normalise(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Returns what `torch.nn.functional.batch_norm` would for the whole batch, of this process's images."""
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        mean, var, count = measure(x, self.sizes)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * (count / max(count - 1, 1))).to(running_var.dtype), momentum)
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        normalised: Tensor = _Normalise.apply(x, weight, bias, mean, var, eps, count)  # type: ignore[no-untyped-call]
        return normalised


def measure(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, int]:
    """Returns mean and variance (C,) of each channel over the whole batch, float32 at least, and the count of values.

    Args:
        x: this process's share (n, C, ...) of the batch.
        sizes: images of each process.
    """
    with torch.no_grad():
        own = torch.stack(torch.var_mean(widen(x), [0, *range(2, x.dim())], correction=0))  # (2, C)
        parts = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(parts, own)
        variances, means = torch.stack(parts, 1)  # (processes, C) each
        shares = torch.tensor(sizes, dtype=own.dtype, device=x.device)[:, None] / sum(sizes)
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean).square())).sum(0)
    per_image = x.numel() // x.shape[1] // sizes[dist.get_rank()]
    return mean, var, per_image * sum(sizes)


def widen(tensor: Tensor) -> Tensor:
    """Returns a tensor of 16 bits as float32, and others as they are: sums over many values need the digits."""
    return tensor.float() if tensor.element_size() < 4 else tensor


class _Normalise(torch.autograd.Function):
    """Batch norm with given statistics, whose gradient knows that they depend on all images."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own signature
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        x, weight, mean, var = ctx.saved_tensors
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        # Mean and variance add -(sum of g + n * sum of g n) / count for each channel, with n = (x - mean) / s.
        sums = widen(torch.stack([by_bias, by_weight]))
        dist.all_reduce(sums)
        inverse = (var + ctx.eps).rsqrt()
        of_ones, of_normalised = -sums / ctx.count * (weight * inverse)
        slope = of_normalised * inverse
        shape = (1, -1, *[1] * (x.dim() - 2))
        shift = (of_ones - slope * mean).view(shape)
        return (by_x + (x * slope.view(shape) + shift).to(by_x.dtype), by_weight, by_bias, None, None, None, None)
