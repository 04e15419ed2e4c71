"""What the README and the page of the index show runs as it stands, in a folder with a gallery."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from indistill.cli.walk import write_images
from indistill.data.specs import open_images
from indistill.export.onnx import export_onnx
from indistill.export.session import EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.store.build import build_index

ROOT = Path(__file__).parents[1]


def read_block(language: str, page: str = "README.md") -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- run by tests/test_readme\.py -->\n```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def read_walk() -> list[list[str]]:
    return [shlex.split(line) for line in read_block("bash").splitlines()]


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_use_of_a_file_runs_as_it_stands(tmp_path: Path) -> None:
    """With the exported file, onnxruntime, NumPy and Pillow alone; what it prints is the cosine that our reader has."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(32, 0.875)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), preprocessing, pixels, tmp_path / "student.onnx")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    for row, (name, size) in enumerate((("a.png", (70, 50)), ("b.png", (41, 97)))):
        Image.fromarray(pixels[row]).resize(size).save(tmp_path / name, exif=exif)
    code = read_block("python")
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == {"numpy", "onnxruntime", "PIL"}
    printed = run_python(code, tmp_path)
    first, second = EmbeddingSession(tmp_path / "student.onnx").embed_images([tmp_path / "a.png", tmp_path / "b.png"])
    assert float(printed) == pytest.approx(float(first @ second), abs=1e-3)


def test_the_use_of_an_index_from_python_runs_as_it_stands(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, tmp_path / "student.onnx")
    for row in range(12):
        path = tmp_path / "gallery" / ("cat", "dog")[row % 2] / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(path)
    shutil.copy(tmp_path / "gallery" / "dog" / "03.png", tmp_path / "query.jpg")
    build_index(
        open_images(str(tmp_path / "gallery")), EmbeddingSession(tmp_path / "student.onnx"), tmp_path / "gallery.index"
    )
    lines = [line.split() for line in run_python(read_block("python", "docs/index-folder.md"), tmp_path).splitlines()]
    assert lines[0] == ["1", "1.0", str(tmp_path / "gallery" / "dog" / "03.png")]
    assert [Path(path).parent.name for _, _, path in lines] == ["dog"] * 5
    assert all(Path(path).is_file() for _, _, path in lines)


def test_the_readmes_walk_runs_as_it_stands(tmp_path: Path) -> None:
    write_images(open_images("digits/train"), tmp_path / "gallery")
    outputs = {}
    walk = read_walk()
    assert len(walk) == 11
    for command in walk:
        assert command[0] == "indistill"
        done = subprocess.run(
            [sys.executable, "-m", "indistill.cli.main", *command[1:]],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
        outputs[shlex.join(command[1:3]) + " ".join(command[-2:])] = done.stdout
    hits = json.loads(outputs["search gallery.indexgallery/3/00003.png --json"])["queries"][0]["hits"]
    assert hits[0]["path"] == "3/00003.png"
    assert "data:image/jpeg" in (tmp_path / "hits.html").read_text(encoding="utf-8")
