import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from indistill.data.manifests import open_manifest
from indistill.data.sets import StoredImage, open_folder
from indistill.errors import DataError
from indistill.export.onnx import export_onnx
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.models.loading import load_network
from indistill.preprocess import Preprocessing
from indistill.retrieval.embed import BATCH_SIZE, embed_files

RANDOM = np.random.default_rng(0)
BAD = (b"", b"text", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0")


@dataclass(frozen=True)
class StoredSet:
    """Encoded files in memory."""

    contents: Sequence[bytes]
    name: str = "stored"
    root: str = "stored"
    classes: tuple[str, ...] = ()

    @property
    def names(self) -> Sequence[str]:
        return [str(number) for number in range(len(self.contents))]

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.full(len(self.contents), -1)

    def read(self, position: int) -> Image.Image:
        raise AssertionError("files are fetched, as they are hashed too")

    def fetch(self, position: int) -> StoredImage:
        if self.contents[position] == BAD[1]:
            raise DataError("cannot be fetched")
        return StoredImage(self.contents[position], position)


def encode(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


GOOD = [encode(RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(12)]
POOL = (*GOOD, *BAD)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "student.onnx"
    pixels = RANDOM.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, path)
    return EmbeddingSession(path)


@pytest.fixture(scope="module")
def alone(session: EmbeddingSession) -> dict[str, Embeddings]:
    """Returns the vector of each good image by its SHA-256."""
    return {hashlib.sha256(content).hexdigest(): session.embed_images([content])[0] for content in GOOD}


@given(
    chosen=st.lists(st.integers(0, len(POOL) - 1), max_size=2 * BATCH_SIZE + 5),
    known=st.sets(st.integers(0, len(GOOD) - 1)),
    workers=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bad_image_never_shifts_a_row(
    session: EmbeddingSession, alone: dict[str, Embeddings], chosen: list[int], known: set[int], workers: int | None
) -> None:
    contents = [POOL[number] for number in chosen]
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    marks = {hashlib.sha256(GOOD[n]).hexdigest(): np.full(64, n, dtype=np.float32) for n in known}
    kept: list[tuple[str, Embeddings]] = []
    done: list[int] = []

    def keep(names: Sequence[str], vectors: Embeddings) -> None:
        kept.extend(zip(names, vectors, strict=True))

    found = embed_files(StoredSet(contents), session, done.append, known=marks, keep=keep, workers=workers)
    assert sum(done) == len(contents)
    good = [position for position, number in enumerate(chosen) if number < len(GOOD)]
    assert [file.name for file in found.files] == [str(position) for position in good]
    assert [file.sha256 for file in found.files] == [hashes[position] for position in good]
    assert [file.size_bytes for file in found.files] == [len(contents[position]) for position in good]
    assert [file.modified_ns for file in found.files] == good
    assert found.vectors.shape == (len(good), 64)
    for file, row in zip(found.files, found.vectors, strict=True):
        assert np.allclose(row, marks.get(file.sha256, alone[file.sha256]), atol=1e-5)
    assert [name for name, _ in kept] == [file.sha256 for file in found.files if file.sha256 not in marks]
    assert all(np.allclose(vector, alone[name], atol=1e-5) for name, vector in kept)
    skipped = {str(position) for position in range(len(chosen))} - {file.name for file in found.files}
    assert {image.name for image in found.skipped} == skipped
    assert all(image.reason for image in found.skipped)


def test_names_of_any_bytes_are_embedded_or_skipped_with_a_reason(tmp_path: Path, session: EmbeddingSession) -> None:
    for name in ("1\n2.png", "é 名.png", "sub"):
        (tmp_path / name).write_bytes(GOOD[0])
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(GOOD[0])
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    found = embed_files(open_folder(tmp_path, "g"), session)
    assert [file.name for file in found.files] == ["1\n2.png", "sub", "é 名.png"]
    assert {image.name: image.reason for image in found.skipped} == {
        "gone.png": "No such file or directory",
        "\\udcff.png": "its name is not valid UTF-8",
    }


def test_what_a_manifest_names_is_looked_at_before_it_is_read(tmp_path: Path, session: EmbeddingSession) -> None:
    (tmp_path / "good.png").write_bytes(GOOD[0])
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "images.csv").write_text("path\nfolder.png\ngood.png\npipe.png\n")
    found = embed_files(open_manifest(tmp_path / "images.csv", "m"), session)
    assert [file.name for file in found.files] == ["good.png"]
    assert [(image.name, image.reason) for image in found.skipped] == [
        ("folder.png", "is a folder, not an image"),
        ("pipe.png", "is a pipe or a device, not an image"),
    ]


def test_a_large_photograph_has_the_same_vector_in_the_gallery_and_as_a_query(
    tmp_path: Path, session: EmbeddingSession
) -> None:
    noise = Image.fromarray(RANDOM.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    photo = np.asarray(noise.resize((1024, 768), Image.Resampling.BICUBIC))
    (tmp_path / "photo.jpg").write_bytes(encode(photo, "JPEG"))
    row = embed_files(open_folder(tmp_path, "g"), session).vectors[0]
    assert np.allclose(session.embed_images([tmp_path / "photo.jpg"])[0], row, atol=1e-6)
    full = session.embed_images([Image.open(tmp_path / "photo.jpg")])[0]  # an image is never decoded again
    assert 0.99 < float(full @ row) < 1
