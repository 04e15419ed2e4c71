"""Arrays in files from anyone: mapped, so that none is larger in memory than it is, and never unpickled."""

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indistill.files.bounded import require_regular


def map_array(path: Path) -> NDArray[Any]:
    """Returns the array of a `.npy` file, which stays on the disk.

    Raises:
        OSError: there is no such file, or it is none that ends.
        ValueError: it is damaged, holds objects, or fewer values than it says.
    """
    require_regular(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (EOFError, SyntaxError, TypeError, ArithmeticError, MemoryError, tokenize.TokenError) as error:
        raise ValueError(f"{path} is no array") from error
