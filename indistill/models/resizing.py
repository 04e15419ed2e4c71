"""What makes a network narrower than its factory builds it, as plain data, and that network made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from indistill.errors import ModelError


@dataclass(frozen=True)
class Narrowing:
    """How a network differs from what its factory builds.

    Neither the teacher's weights nor the rules by which channels were chosen are needed to build it again.

    Attributes:
        width: the share of channels that was asked for.
        from_scratch: whether the weights were drawn anew, not those of the teacher.
        tensors: shape of each parameter and buffer that differs, as in `64x32x3x3`, by its name.
        sizes: each attribute that differs, such as `layer1.0.conv1.out_channels`, by its path.
    """

    width: float
    from_scratch: bool
    tensors: Mapping[str, str]
    sizes: Mapping[str, int | list[int]]

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as plain data, for config.yaml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Narrowing":
        """Returns the object that `to_dict` described. Raises ModelError if the data are others."""
        try:
            return cls(float(data["width"]), bool(data["from_scratch"]), dict(data["tensors"]), dict(data["sizes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the run's config.yaml is damaged: 'narrowing' cannot be read ({error!r})") from error


def describe_shapes(wide: nn.Module, narrowed: nn.Module) -> tuple[dict[str, str], dict[str, int | list[int]]]:
    """Returns the tensors and the sizes (see `Narrowing`) by which a network differs from its narrow copy."""
    before = wide.state_dict()
    tensors = {
        name: "x".join(map(str, value.shape))
        for name, value in narrowed.state_dict().items()
        if value.shape != before[name].shape
    }
    sizes: dict[str, int | list[int]] = {}
    for (name, old), new in zip(wide.named_modules(), narrowed.modules(), strict=True):
        for attribute, value in vars(new).items():
            if not _is_size(value) or value == vars(old).get(attribute):
                continue
            sizes[f"{name}.{attribute}".lstrip(".")] = value if isinstance(value, int) else list(value)
    return tensors, sizes


def resize(network: nn.Module, narrowing: Narrowing) -> None:
    """Gives a network's layers the recorded sizes, in place. Of each tensor the leading part is kept.

    Raises:
        ModelError: the network has no such layer, or a smaller one.
    """
    try:
        for path, text in narrowing.tensors.items():
            owner, name = _find_owner(network, path)
            tensor = getattr(owner, name)
            shape = [int(side) for side in text.split("x")]
            if len(shape) != tensor.dim() or any(new > old for new, old in zip(shape, tensor.shape, strict=True)):
                raise ValueError(f"'{path}' cannot be {text}, its factory builds {tuple(tensor.shape)}")
            part = tensor.detach()[tuple(slice(side) for side in shape)].clone()
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, tensor.requires_grad)
            setattr(owner, name, part)
        for path, size in narrowing.sizes.items():
            owner, name = _find_owner(network, path)
            if not hasattr(owner, name):
                raise AttributeError(f"there is no '{path}'")
            setattr(owner, name, tuple(size) if isinstance(size, list) else size)
    except (AttributeError, ValueError) as error:
        raise ModelError(
            f"the narrow network of the run cannot be built again: {error}; has the code of its model changed?"
        ) from error


def reinitialise(network: nn.Module) -> None:
    """Draws the parameters of each layer anew, from torch's generator, by the layer's own default.

    Parameters outside such layers (class tokens, position embeddings, layer scales) stay as they are.
    """
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()


def _is_size(value: object) -> bool:
    if isinstance(value, tuple):
        return len(value) > 0 and all(type(item) is int for item in value)
    return type(value) is int


def _find_owner(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return network.get_submodule(owner), name
