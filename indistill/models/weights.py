"""Weights as data: read from `.safetensors`, or from `.pt` with `weights_only`; nothing in a file is ever run."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from indistill.errors import InputError, ModelError, describe_error
from indistill.files.archives import load_archive
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.models.files import check_weights_file

MISMATCHES_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file.

    A `.pt` file may hold the state dict itself or a dict with it under `state_dict` or `model`.

    Raises:
        ModelError: no such file, another suffix, a damaged file, or a pickle that holds more than tensors.
    """
    check_weights_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, MemoryError) as error:
            raise ModelError(f"weights: {path} is not a safetensors file ({describe_error(error)})") from error
    try:
        loaded = load_archive(path)
    except ValueError as error:
        raise ModelError(
            f"weights: {path} holds something other than tensors, or is damaged, and was not opened; "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ModelError(f"weights: {path} does not hold a state dict (names to tensors)")
    return loaded


def load_weights(network: nn.Module, path: Path) -> None:
    """Copies the weights of a file into a network, all of them or none.

    Raises:
        ModelError: the names or shapes differ; the message gives the first mismatches.
    """
    weights = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    expected = network.state_dict()
    mismatches = [f"{name} is missing" for name in expected if name not in weights]
    mismatches += [f"{name} is not in the network" for name in weights if name not in expected]
    mismatches += [
        f"{name} is {tuple(weights[name].shape)}, the network has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if mismatches:
        more = f" and {len(mismatches) - MISMATCHES_SHOWN} more" if len(mismatches) > MISMATCHES_SHOWN else ""
        shown = "; ".join(mismatches[:MISMATCHES_SHOWN])
        raise ModelError(f"weights: {path} are those of another network: {shown}{more}")
    network.load_state_dict(weights)


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes a network's state dict as safetensors, complete or not at all.

    Raises:
        InputError: the place cannot be written to.
    """
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    try:
        with write_aside(path) as stream:
            stream.write(save(state))
        move_into_place(name_aside(path), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; make room, and go on with --resume") from error
