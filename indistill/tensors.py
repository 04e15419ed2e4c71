"""The parameters and buffers of a module, by name."""

import torch
from torch import Tensor, nn


def list_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, those that no state dict holds too, each once."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items()}


def copy_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Copies values into parameters and buffers in place, so that all that shares them sees them."""
    with torch.no_grad():
        for name, tensor in list_tensors(module).items():
            tensor.copy_(tensors[name])
