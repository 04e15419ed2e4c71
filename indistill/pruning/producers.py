"""The layers that make the channels of a stage, found from the stage back towards the image."""

from dataclasses import dataclass

from torch import nn
from torch.autograd.graph import Node as Function

from indistill.errors import StageError
from indistill.stages.graph import read_grid
from indistill.stages.trunk import Parametric, Recording, read_shape


@dataclass(frozen=True)
class Producer:
    """The layer that makes the channels of a stage, and the batch norm right behind it, if there is one."""

    name: str
    layer: Parametric
    norm: nn.BatchNorm2d | None


def find_producers(network: nn.Module, node: str, image_size: int) -> tuple[Producer, ...]:
    """Returns the layers that make the channels of a stage: one, or several where their outputs are concatenated.

    From the stage back towards the image: of a sum, the term with more layers behind it is followed (the block, not
    its shortcut); of a product, the factor that the other one is computed from (the features, not their gate).
    Depthwise convolutions, norms and activations work channel by channel and are passed.

    Raises:
        StageError: there are none, as where channels are shuffled on the way.
    """
    return follow_channels(Recording(network, image_size), node)


def follow_channels(recording: Recording, node: str) -> tuple[Producer, ...]:
    """Returns what `find_producers` does, of a run of the network that is there already."""
    function = recording.find_function(node)
    grid = None if function is None else read_grid(read_shape(function), recording.image_size)
    width = read_shape(function)[1] if grid is None and function is not None else (grid or (0, 0))[0]
    found = None if function is None else _follow(recording, function, width, None)
    if found is None:
        raise StageError(
            f"no convolution or linear layer before the stage '{node}' gives its {width} channels: use "
            "--criterion activation, taylor or random, or name another node with --pair TEACHER:STUDENT"
        )
    return found


def _follow(
    recording: Recording, function: Function, width: int, norm: nn.BatchNorm2d | None
) -> tuple[Producer, ...] | None:
    while True:
        layer = recording.find_layer(function)
        norm = recording.find_norm(function) or norm
        if layer is not None and isinstance(layer[1], Parametric) and not _is_depthwise(layer[1]):
            made = _count_outputs(layer[1])
            return (Producer(layer[0], layer[1], norm),) if made == width else None
        sources = recording.list_sources(function)
        if layer is not None and isinstance(layer[1], nn.Conv2d):
            norm = None  # it scales what the depthwise convolution gives
        name = function.name()
        if not sources or width not in read_shape(function) or "Shuffle" in name:
            return None
        if name.startswith("Cat"):
            return _follow_parts(recording, function, width)
        if len(sources) > 1 and name.startswith("Mul"):
            whole = [source for source in sources if read_shape(source) == read_shape(function)] or sources
            function = next((source for source in whole if _is_before(recording, source, whole[-1])), whole[-1])
        else:
            function = max(sources, key=lambda source: recording.depth[source])


def _follow_parts(recording: Recording, function: Function, width: int) -> tuple[Producer, ...] | None:
    """Returns the producers of a concatenation along the channels, in its order; of one along the tokens, those of
    the largest part.
    """
    parts = recording.list_sources(function)
    whole = read_shape(function)
    if all(width in read_shape(part) for part in parts):
        return _follow(recording, max(parts, key=lambda part: read_shape(part).numel()), width, None)
    widths = [next((a for a, b in zip(read_shape(part), whole, strict=True) if a != b), 0) for part in parts]
    if len(parts) != len(function.next_functions) or sum(widths) != width:
        return None
    producers: list[Producer] = []
    for part, share in zip(parts, widths, strict=True):
        found = _follow(recording, part, share, None)
        if found is None:
            return None
        producers += found
    return tuple(producers)


def _is_before(recording: Recording, first: Function, second: Function) -> bool:
    """Returns whether the second function is computed from the first."""
    waiting, seen = [second], set()
    while waiting:
        function = waiting.pop()
        if function is first:
            return True
        if function not in seen and recording.position[function] > recording.position[first]:
            seen.add(function)
            waiting += recording.list_sources(function)
    return False


def _is_depthwise(layer: Parametric) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def _count_outputs(layer: Parametric) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
