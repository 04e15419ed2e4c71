"""Attention made narrower by whole heads, so that those which stay compute what they computed before."""

import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch_pruning.pruner import function

from indistill.pruning.channels import select_channels


class Attention(Protocol):
    """Self-attention as timm writes it: one layer for queries, keys and values, one for the output."""

    num_heads: int
    head_dim: int
    attn_dim: int
    qkv: nn.Linear
    proj: nn.Linear


class HeadPruner(function.BasePruningFunc):  # type: ignore[misc] # Torch-Pruning has no types
    """Prunes `nn.MultiheadAttention`, whose heads are together as wide as what it reads and writes.

    Differs: Torch-Pruning's own pruner takes the channels that go out of the stream out of the heads as well, so that
    what is left of a head ends up in another one.
    """

    def prune_out_channels(self, layer: nn.MultiheadAttention, idxs: list[int]) -> nn.MultiheadAttention:
        """Returns the layer without some channels of the stream (whole heads' worth), and without as many heads."""
        heads, head_dim, wide = layer.num_heads, layer.head_dim, layer.embed_dim
        if len(idxs) % head_dim or layer.in_proj_weight is None:
            raise ValueError(f"attention with heads of {head_dim} channels cannot lose {len(idxs)} channels")
        stream = _invert(idxs, wide)
        inner = _list_channels(_select_heads(layer.out_proj.weight, heads, heads - len(idxs) // head_dim), head_dim)
        rows = torch.cat([inner + part * wide for part in range(3)])
        layer.in_proj_weight = nn.Parameter(layer.in_proj_weight.detach()[rows][:, stream])
        if layer.in_proj_bias is not None:
            layer.in_proj_bias = nn.Parameter(layer.in_proj_bias.detach()[rows])
        function.prune_linear_out_channels(layer.out_proj, idxs)
        function.prune_linear_in_channels(layer.out_proj, _invert(inner.tolist(), wide).tolist())
        layer.num_heads = heads - len(idxs) // head_dim
        layer.embed_dim = layer.kdim = layer.vdim = layer.num_heads * head_dim
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.MultiheadAttention) -> int:
        return int(layer.embed_dim)

    get_in_channels = get_out_channels


def find_attentions(network: nn.Module) -> dict[str, Attention]:
    """Returns the modules whose heads `prune_heads` can leave out, by their names."""
    found = {}
    for name, module in network.named_modules():
        qkv, proj = getattr(module, "qkv", None), getattr(module, "proj", None)
        if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or not hasattr(module, "attn_dim"):
            continue
        plain = isinstance(getattr(module, "norm", None), nn.Identity) and getattr(module, "gate", None) is None
        if plain and qkv.out_features == 3 * module.attn_dim and proj.in_features == module.attn_dim:
            found[name] = cast(Attention, module)
    return found


def prune_heads(attention: Attention, width: float) -> Tensor:
    """Leaves the least important heads out, in place, and returns the rows of `qkv` that are kept."""
    heads, head_dim = attention.num_heads, attention.head_dim
    count = max(1, math.floor(width * heads + 0.5))
    inner = _list_channels(_select_heads(attention.proj.weight, heads, count), head_dim)
    rows = torch.cat([inner + part * heads * head_dim for part in range(3)])
    function.prune_linear_out_channels(attention.qkv, _invert(rows.tolist(), 3 * heads * head_dim).tolist())
    function.prune_linear_in_channels(attention.proj, _invert(inner.tolist(), heads * head_dim).tolist())
    attention.num_heads, attention.attn_dim = count, count * head_dim
    return rows


def _select_heads(projection: Tensor, heads: int, count: int) -> Tensor:
    """Returns the heads (count,) of which the output's projection (D, heads * head_dim) makes most, by l1 norm."""
    return select_channels(projection.detach().abs().sum(0).view(heads, -1).sum(1), count)


def _list_channels(heads: Tensor, head_dim: int) -> Tensor:
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _invert(indices: list[int], channels: int) -> Tensor:
    """Returns the channels that are not among some."""
    return torch.tensor(sorted(set(range(channels)) - set(indices)), dtype=torch.int64)
