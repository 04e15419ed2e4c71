import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    """Returns a model of 32-pixel images, for galleries of noise."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "student.onnx"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, path)
    return EmbeddingSession(path)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Returns forty different images, encoded."""
    random, encoded = np.random.default_rng(1), []
    for _ in range(40):
        stream = io.BytesIO()
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.NEAREST).save(stream, format="PNG")
        encoded.append(stream.getvalue())
    return encoded


def write_gallery(folder: Path, pictures: list[bytes]) -> Path:
    """Writes images by turns into the classes `cat` and `dog`."""
    for number, picture in enumerate(pictures):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    return folder
