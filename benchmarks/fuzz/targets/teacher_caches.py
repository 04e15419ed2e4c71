"""Stored outputs of a teacher: the file changed; what does not fit is made anew, and nothing in it is executed."""

import io
import pickle
import random
from pathlib import Path

import numpy as np

from benchmarks.fuzz.damage import damage
from benchmarks.fuzz.targets.weights import Trap
from indistill.distillation.teacher_cache import read_rows

COUNT, WIDTH = 6, 4


def attempt(random: random.Random, folder: Path) -> None:
    """Reads a file of rows, which is none or has as many rows as there are images."""
    trap, path = folder / "executed", folder / "teacher.npy"
    stream = io.BytesIO()
    match random.randrange(4):
        case 0:
            np.save(stream, np.array([Trap(trap)] * COUNT, dtype=object), allow_pickle=True)
        case 1:
            shape = random.choice((f"({2**62}, 4)", "(6, -4)", "(6, " + "1" * 5000 + ")", "()", "(6,)", "(6, 0)"))
            kind = random.choice(("<f4", "|O", "<f8", "|V4", ">f4"))
            order = random.choice((True, False, "x"))
            header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
            stream.write(b"\x93NUMPY\x01\x00" + (len(header) % 2**16).to_bytes(2, "little") + header + bytes(96))
        case 2:
            stream.write(pickle.dumps(Trap(trap)))
        case _:
            np.save(stream, np.zeros((COUNT, WIDTH), dtype=np.float32))
    content = stream.getvalue()
    path.write_bytes(content if random.random() < 0.4 else damage(content, random))
    rows = read_rows(path, COUNT)
    assert rows is None or (rows.dtype == np.float32 and len(rows) == COUNT and float(rows.sum()) is not None)
    assert not trap.exists(), "a pickle was executed"
