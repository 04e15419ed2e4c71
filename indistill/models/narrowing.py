"""A network made narrower: the teacher with fewer channels in each layer, pruned structurally by Torch-Pruning.

Torch-Pruning finds the groups of layers whose channels are coupled (a residual sum, a depthwise convolution, a
concatenation); here it is decided how many and which channels of each group are kept.

Reference: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning import ops
from torchvision.models import VisionTransformer

from indistill.errors import ModelError
from indistill.models.heads import HeadPruner, find_attentions, prune_heads
from indistill.pruning.channels import measure_importance, select_channels
from indistill.stages.trunk import Recording

MULTIPLE = 8  # channels are kept in multiples of it, which vector units and tensor cores like, and never fewer
ADVICE = "name a student of its own with --student"


@dataclass(frozen=True)
class NarrowNetwork:
    """A network that was narrowed.

    Attributes:
        module: the narrow network, with the weights of the channels that it keeps.
        kept: for each layer that lost outputs, the indices (width,) int64 of those of the wide layer that it keeps.
    """

    module: nn.Module
    kept: Mapping[str, Tensor]


def narrow(network: nn.Module, width: float, image_size: int) -> NarrowNetwork:
    """Returns a copy of a network with a share of its channels; the network itself stays as it is.

    Of each group of coupled layers those channels are kept whose filters in the deepest layer that writes them have the
    largest l1 norm: the channels that InDistill selects where a stage ends with that layer. Attention loses whole
    heads. A last linear layer keeps its outputs.

    Args:
        network: on the CPU.
        width: the share of channels, in (0, 1); see `round_width`.
        image_size: side of the images in pixels.

    Raises:
        ModelError: Torch-Pruning cannot follow the network, the narrow network does not run, or nothing could be left
            out.
    """
    module = copy.deepcopy(network).eval().requires_grad_(True)  # autograd's graph is what is followed
    example = torch.zeros(1, 3, image_size, image_size)
    kept = {f"{name}.qkv": prune_heads(attention, width) for name, attention in find_attentions(module).items()}
    order = _trace_order(module, example)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            module, example, customized_pruners={nn.MultiheadAttention: HeadPruner()}, verbose=False
        )
        kept |= _prune_groups(graph, module, width, order)
        _mend_attributes(module)
        _check_widths(network, module, width)
    except Exception as error:  # Torch-Pruning asserts, and looks up what may not be there
        raise ModelError(_describe_failure(network, width, error)) from error
    _check_runs(network, module, width, example)
    _restore_modes(network, module)
    return NarrowNetwork(module, kept)


def round_width(channels: int, width: float, unit: int = MULTIPLE) -> int:
    """Returns how many of a layer's channels are kept: the nearest multiple of `unit` to `width * channels`, at least
    `unit` and at most all of them.
    """
    return min(channels, max(unit, math.floor(width * channels / unit + 0.5) * unit))


def _prune_groups(
    graph: torch_pruning.DependencyGraph, module: nn.Module, width: float, order: Mapping[nn.Module, tuple[int, int]]
) -> dict[str, Tensor]:
    """Prunes all groups of coupled layers, and returns the kept channels of each layer by its name."""
    names = {layer: name for name, layer in module.named_modules()}
    ignored = [attention.qkv for attention in find_attentions(module).values()]
    last = list(order)[-1]
    if isinstance(last, nn.Linear):
        ignored.append(last)
    chosen = []
    for group in graph.get_all_groups(ignored_layers=ignored):
        root = group[0].dep
        keep = _select_kept(graph, group, width, order)
        if keep is not None:
            chosen.append((root.target.module, root.handler, keep))
    kept = {}
    for root_layer, prune, keep in chosen:  # only now, as each step changes the norms of the groups behind it
        channels = graph.get_out_channels(root_layer)
        dropped = sorted(set(range(channels)) - set(keep.tolist()))
        if not dropped:
            continue
        group = graph.get_pruning_group(root_layer, prune, dropped)
        for item in group:
            layer = item.dep.target.module
            if layer in order and graph.is_out_channel_pruning_fn(item.dep.handler) and item.idxs == dropped:
                kept[names[layer]] = keep
        group.prune()
    return kept


def _select_kept(
    graph: torch_pruning.DependencyGraph,
    group: torch_pruning.dependency.Group,
    width: float,
    order: Mapping[nn.Module, tuple[int, int]],
) -> Tensor | None:
    """Returns the channels of a group's first layer that are kept; None where all of them must be."""
    channels = len(group[0].idxs)
    writers, divisions, unit = [], [1], MULTIPLE
    for item in group:
        layer, handler = item.dep.target.module, item.dep.handler
        if item.dep.target.type == ops.OPTYPE.UNBIND:
            return None  # queries, keys and values of an attention that is not known
        if isinstance(layer, nn.MultiheadAttention):
            unit = math.lcm(unit, layer.head_dim) if layer.embed_dim == channels else unit
        if isinstance(layer, nn.GroupNorm):
            divisions.append(layer.num_groups)
        if isinstance(layer, nn.Conv2d) and not _is_depthwise(layer):
            divisions.append(layer.groups)
        whole = item.idxs == group[0].idxs and item.root_idxs == group[0].root_idxs
        writes = whole and graph.is_out_channel_pruning_fn(handler)
        if writes and isinstance(layer, nn.Conv2d | nn.Linear) and not _is_depthwise(layer):
            writers.append(layer)
    parts = math.lcm(*divisions)
    if channels % parts:
        return None
    # A gate such as squeeze-and-excitation's multiplies the channels, from a single position: it does not write them.
    writers = writers or [group[0].dep.target.module]
    maps = [layer for layer in writers if order[layer][1] > 1]
    last = max(maps or writers, key=lambda layer: order[layer][0])
    importance = measure_importance(last).view(parts, -1).mean(0)  # the same channels of each part are kept
    count = round_width(importance.numel(), width, unit // math.gcd(unit, parts))
    keep = select_channels(importance, count)
    return (keep + torch.arange(0, channels, channels // parts)[:, None]).flatten()


def _trace_order(module: nn.Module, example: Tensor) -> dict[nn.Module, tuple[int, int]]:
    """Returns for each convolution and linear layer, in the order of running, the number of layers up to it on the
    longest way from the image, and its number of outputs in a map: positions (pixels or tokens), not channels.
    """
    recording = Recording(module, example.shape[-1])
    found = ((recording.find_layer(function), depth) for function, depth in recording.depth.items())
    depths = {layer[0]: depth for layer, depth in found if layer is not None}
    names = {layer: name for name, layer in module.named_modules()}
    order: dict[nn.Module, tuple[int, int]] = {}

    def note(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        channels = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
        order[layer] = (depths.get(names[layer], 0), output.numel() // channels)

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _mend_attributes(module: nn.Module) -> None:
    """Sets what layers remember of their width beside what Torch-Pruning sets."""
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if hasattr(layer, "normalized_shape") and isinstance(weight, Tensor):
            layer.normalized_shape = tuple(weight.shape)  # type: ignore[assignment]
        if isinstance(layer, VisionTransformer):
            layer.hidden_dim = layer.conv_proj.out_channels


def _check_widths(wide: nn.Module, narrowed: nn.Module, width: float) -> None:
    """Raises ValueError if a layer is narrower than asked for: it was taken for a part of two groups."""
    heads = set(find_attentions(wide))
    for name, layer in narrowed.named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear) or name.rpartition(".")[0] in heads:
            continue
        old, new = len(wide.get_parameter(f"{name}.weight")), len(layer.weight)
        if new < old and (new % MULTIPLE or new < round_width(old, width) - MULTIPLE):
            raise ValueError(f"{name} would keep {new} of {old} channels")


def _check_runs(wide: nn.Module, narrowed: nn.Module, width: float, example: Tensor) -> None:
    if sum(p.numel() for p in narrowed.parameters()) >= sum(p.numel() for p in wide.parameters()):
        raise ModelError(
            f"width:{width:g} leaves nothing out of {type(wide).__name__}: layers keep {MULTIPLE} channels at least, "
            f"in multiples of {MULTIPLE} (attention: whole heads); give a smaller width, or {ADVICE}"
        )
    try:
        with torch.no_grad():
            narrowed(example)
    except Exception as error:  # the network's own code may raise anything
        raise ModelError(_describe_failure(wide, width, error)) from error


def _restore_modes(wide: nn.Module, narrowed: nn.Module) -> None:
    for old, new in zip(wide.modules(), narrowed.modules(), strict=True):
        new.training = old.training
    flags = {name: parameter.requires_grad for name, parameter in wide.named_parameters()}
    for name, parameter in narrowed.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None


def _describe_failure(network: nn.Module, width: float, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"{type(network).__name__} cannot be narrowed to width:{width:g}, as its layers depend on each other in a way "
        f"that Torch-Pruning cannot follow ({type(error).__name__}: {reason}); {ADVICE}"
    )


def _is_depthwise(layer: nn.Conv2d | nn.Linear) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1
