"""A small run, its exported file, an index and images, made once for all attempts."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

VARIABLE = "INDISTILL_FUZZ_WORKSPACE"
COMMANDS = (
    "train --model paper:cnn-a --data {0}/gallery --recipe digits --epochs 2 --out {0}/teacher",
    "compress --teacher {0}/teacher --student paper:cnn-s --data {0}/gallery --recipe digits --epochs 3 --out {0}/run",
    "export {0}/run --onnx",
    "index build {0}/gallery --model {0}/run/student.onnx --out {0}/index",
)


def find_workspace() -> Path:
    """Returns the folder: `gallery` of 40 images in classes, `teacher` and `run`, `run/student.onnx`, and `index`."""
    known = os.environ.get(VARIABLE)
    if known is not None:
        return Path(known)
    folder = Path(mkdtemp(prefix="indistill-fuzz-"))
    rng = np.random.default_rng(0)
    for number in range(40):
        path = folder / "gallery" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    for line in COMMANDS:
        command = [sys.executable, "-m", "indistill.cli.main", *line.format(folder).split()]
        subprocess.run(command, check=True, capture_output=True)
    os.environ[VARIABLE] = str(folder)
    return folder
