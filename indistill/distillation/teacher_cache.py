"""The teacher's outputs of all training images, computed once and read from a file, where the images never vary.

`checkpoint/teacher-1-9f86d081884c7d65.npy` has a row for each image; 1 is its format, and a hash follows of what the
rows depend on: the teacher's weights and node, the images, their normalisation.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indistill.data.batches import Batches
from indistill.distillation.terms import Term
from indistill.errors import InputError
from indistill.files.arrays import map_array
from indistill.files.durable import move_into_place, name_aside, write_aside
from indistill.files.formats import TEACHER_CACHE
from indistill.progress import show_progress
from indistill.stages.graph import freeze
from indistill.stages.taps import Taps
from indistill.tensors import list_tensors
from indistill.training.checkpoint import keep_random_states

DIGITS = 16  # of the SHA-256 in a name


class StoredTeacher:
    """Stands for a frozen teacher: gives its output for the images of the batch that was drawn last.

    Args:
        rows: (N, D) float32, in a file: of the images that the batches are drawn from, in their order.
        batches: say which images were drawn.
    """

    def __init__(self, rows: NDArray[np.float32], batches: Batches) -> None:
        self.rows, self._batches = rows, batches
        self._positions = batches.positions.numpy()

    def __call__(self, images: Tensor) -> tuple[Tensor]:
        """Returns the rows (B, D) of the batch drawn last, which these images (B, 3, H, W) are."""
        places = np.searchsorted(self._positions, self._batches.chosen.numpy())
        return (torch.from_numpy(self.rows[places]).to(images.device),)


def store_teacher(
    teacher: nn.Module, term: Term, batches: Batches, folder: Path, data_fingerprint: str
) -> StoredTeacher:
    """Returns the stored outputs of a teacher: those in the folder, if they are its own, else it is run once.

    The file is complete or not there. No random number is drawn, so that a resumed run that finds it goes on the same.

    Args:
        teacher: in any mode.
        term: says what is read of it; not a stage.
        batches: of images that do not vary.
        folder: of the file.
        data_fingerprint: of the images.

    Raises:
        InputError: the file cannot be written.
    """
    assert term.teacher is not None
    count = len(batches.positions)
    digest = hashlib.sha256(f"{data_fingerprint} {term.reads} {term.teacher}".encode())
    for tensor in (batches.positions, batches.scale, batches.shift, *list_tensors(teacher).values()):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    path = folder / f"teacher-{TEACHER_CACHE.version}-{digest.hexdigest()[:DIGITS]}.npy"
    rows = read_rows(path, count)
    if rows is not None:
        return StoredTeacher(rows, batches)
    try:
        folder.mkdir(exist_ok=True)
        _fill(teacher, term, batches, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; make room, or use --set targets.cache=never"
        ) from error
    rows = read_rows(path, count)
    assert rows is not None
    return StoredTeacher(rows, batches)


def _fill(teacher: nn.Module, term: Term, batches: Batches, path: Path) -> None:
    assert term.teacher is not None
    count, header = len(batches.positions), np.lib.format.write_array_header_1_0
    with keep_random_states(batches.labels.device), torch.inference_mode():
        frozen = freeze(Taps(teacher, [term.teacher]))
        # Written as a stream: a full disk is an error then, and not the end of the process as in a memory map.
        with write_aside(path) as stream, show_progress("running the teacher once", count) as advance:
            for images in batches.read_plain(batches.positions):
                (feature,) = frozen(images)
                rows = term.read(feature).float().cpu().numpy()  # (B, D)
                if not stream.tell():
                    header(stream, {"descr": "<f4", "fortran_order": False, "shape": (count, rows.shape[1])})
                stream.write(rows.astype("<f4").tobytes())
                advance(len(rows))
    move_into_place(name_aside(path), path)


def read_rows(path: Path, count: int) -> NDArray[np.float32] | None:
    """Returns the rows of a file, or None where there is none that is whole."""
    try:
        rows: NDArray[np.float32] = map_array(path)
    except (OSError, ValueError):
        return None
    return rows if rows.dtype == np.float32 and rows.ndim == 2 and len(rows) == count else None
