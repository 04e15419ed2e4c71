"""Files of `torch.save` from anyone: tensors and plain values come out, nothing in them is run, and none grows."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import torch

# What PyTorch's readers raise at damaged files and at pickles that hold more than tensors; they have no common class.
_DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    RuntimeError,
    AssertionError,
    EOFError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    MemoryError,
)


def load_archive(path: Path) -> object:
    """Returns what `torch.save` wrote to a file: tensors, numbers, texts, and lists and dicts of them.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, is damaged, or is compressed, which PyTorch never writes.
    """
    try:
        _refuse_compressed(path)
        with warnings.catch_warnings(action="ignore"):  # of unusual pickles, which are refused or harmless
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise ValueError("it holds something other than tensors, or is damaged, and was not opened") from error


def _refuse_compressed(path: Path) -> None:
    """Raises ValueError where the members of an archive are larger together than the file."""
    if not zipfile.is_zipfile(path):  # the form of PyTorch before 1.6
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise ValueError("its members are larger than the file")
