"""Weights and checkpoints: safetensors with odd headers, archives of PyTorch changed, pickles that execute."""

import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.fuzz.damage import ODD_NUMBERS, damage, damage_json, make_odd, require_line
from benchmarks.fuzz.originals import provide
from indistill.errors import InputError
from indistill.files.hashing import hash_file
from indistill.models.weights import read_weights
from indistill.run_folder import CHECKPOINT_FOLDER
from indistill.training.checkpoint import Checkpoints


class Trap:
    """When it is unpickled without care, a file appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def prepare() -> None:
    """Makes the files that are damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Reads weights as each command does, and checkpoints as a training that goes on."""
    trap = folder / "executed"
    name = random.choice(("weights.safetensors", "weights.pt", "legacy.pt", "trap.pt", "checkpoint"))
    if name == "checkpoint":
        _resume(folder / CHECKPOINT_FOLDER, random, trap)
    else:
        path = folder / name
        path.write_bytes(_change(name, random, trap))
        try:
            assert all(isinstance(value, torch.Tensor) for value in read_weights(path).values())
        except InputError as error:
            require_line(error)
    assert not trap.exists(), "a pickle was executed"


def _change(name: str, generator: random.Random, trap: Path) -> bytes:
    if name == "trap.pt":
        return _set_trap(generator, trap)
    content = provide(name).read_bytes()
    if name.endswith(".safetensors") and generator.random() < 0.7:
        return _change_header(content, generator)
    if name == "weights.pt" and generator.random() < 0.7:
        return _change_archive(provide(name), generator, trap.with_name("changed.zip"))
    return damage(content, generator)


def _change_header(content: bytes, generator: random.Random) -> bytes:
    """Returns a safetensors file with other tensors, types, shapes or places in its header, or another length of it."""
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].decode()
    match generator.randrange(4):
        case 0:
            header = damage_json(header, generator)
        case 1:
            tensors = json.loads(header)
            tensor = tensors[generator.choice([name for name in tensors if name != "__metadata__"])]
            tensor[generator.choice(("dtype", "shape", "data_offsets"))] = generator.choice(
                ("F64", "U8", "F8_E4M3", [], [2**62, 4], [2**32, 2**32], [0, 2**63], [8, 0], make_odd(generator))
            )
            header = json.dumps(tensors)
        case 2:
            header = generator.choice(("[" * 10**5, '{"a":' * 10**5, "{}", "", "null", " " * 10**6 + header))
        case _:
            return (generator.choice(ODD_NUMBERS) % 2**64).to_bytes(8, "little") + content[8:]
    return len(header.encode()).to_bytes(8, "little") + header.encode() + content[8 + size :]


def _change_archive(path: Path, generator: random.Random, changed: Path) -> bytes:
    """Returns an archive of PyTorch of which a member is changed, doubled, or grows when it is unpacked."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w") as new:
        names = old.namelist()
        chosen = generator.choice(names)
        for name in names:
            content = old.read(name)
            packing = zipfile.ZIP_STORED
            if name == chosen:
                match generator.randrange(4):
                    case 0:
                        continue
                    case 1:
                        new.writestr(generator.choice(("../x", "/x", name)), content)
                    case 2:
                        content, packing = bytes(50_000_000), zipfile.ZIP_DEFLATED
                    case _:
                        content = damage(content, generator)
            new.writestr(name, content, packing)
    content = changed.read_bytes()
    changed.unlink()
    return content


def _set_trap(generator: random.Random, trap: Path) -> bytes:
    path = trap.with_name("made")
    holder = generator.choice(
        (lambda x: x, lambda x: {"a": x}, lambda x: {"state_dict": {"a": torch.zeros(2), "b": x}})
    )
    content = holder(Trap(trap))
    if generator.random() < 0.5:
        path.write_bytes(pickle.dumps(content, protocol=generator.randint(0, 5)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=generator.random() < 0.5)
    made = path.read_bytes()
    return made if generator.random() < 0.6 else damage(made, generator)


def _resume(folder: Path, generator: random.Random, trap: Path) -> None:
    """Reads a checkpoint whose name fits its content, as one would write it who means harm."""
    folder.mkdir()
    path = folder / "draft"
    match generator.randrange(4):
        case 0:
            path.write_bytes(_set_trap(generator, trap))
        case 1:
            shutil.copyfile(provide("weights.pt"), path)
        case 2:
            odd = {"format": generator.choice((2, make_odd(generator))), "student": make_odd(generator)}
            torch.save(odd | {"x": torch.zeros(1)}, path)
        case _:
            path.write_bytes(damage(provide("weights.pt").read_bytes(), generator))
    path.rename(folder / f"{generator.choice(('0000000100', 'x', '-1'))}-{hash_file(path)[:16]}.pt")
    try:
        Checkpoints(folder, 1).read()
    except InputError as error:
        require_line(error)
