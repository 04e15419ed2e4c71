"""Valid files of every kind, from which the targets make damaged ones: made once, by a process of its own.

    python -m benchmarks.fuzz.originals FOLDER

The targets run in children that are forked: what has threads (FAISS, ONNX Runtime, PyTorch) must not run before that.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

SIDE, IMAGES = 32, 24
FACTORIES = {  # an index folder of each family that indistill writes
    "flat": "Flat",
    "sq8": "SQ8",
    "ivf": "IVF4,SQ8",
    "pca": "PCA16,IVF4,Flat",
    "hnsw": "HNSW8",
    "refine": "SQ8,RFlat",
    "rabitq": "RaBitQ",
}
_MADE = TemporaryDirectory(prefix="indistill-fuzz-")  # empty until somebody asks for a file


def provide(name: str) -> Path:
    """Returns a valid file or folder by its name, which must not be changed; all are made when the first is needed."""
    folder = Path(_MADE.name) / "originals"
    if not folder.exists():
        draft = Path(_MADE.name) / f"draft-{os.getpid()}"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-m", __name__, str(draft)], check=True, env=environment)
        draft.rename(folder)
    return folder / name


def write_originals(folder: Path) -> None:
    """Writes all of them into a new folder."""
    folder.mkdir()
    pictures = _make_pictures()
    gallery = folder / "gallery"
    for number, picture in enumerate(pictures):
        path = gallery / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    _write_models(folder)
    _write_indexes(folder, gallery)
    _write_shard(folder / "shard.tar", pictures)
    _write_tables(folder, pictures)
    _write_weights(folder)


def _make_pictures() -> list[bytes]:
    generator, encoded = np.random.default_rng(1), []
    for _ in range(IMAGES):
        coarse = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(stream, format="PNG")
        encoded.append(stream.getvalue())
    return encoded


def _write_models(folder: Path) -> None:
    import torch

    from indistill.export.folder import pack_folder
    from indistill.export.onnx import export_onnx
    from indistill.models.loading import load_network
    from indistill.preprocess import Preprocessing

    torch.manual_seed(0)
    example = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(SIDE), example, folder / "student.onnx")
    pack_folder([folder / "student.onnx"], folder / "packed")


def _write_indexes(folder: Path, gallery: Path) -> None:
    from indistill.data.sets import open_folder
    from indistill.export.session import EmbeddingSession
    from indistill.retrieval.index_types.types import check_factory
    from indistill.retrieval.store.build import BuildOptions, IndexType, build_index

    session = EmbeddingSession(folder / "student.onnx", 1)
    for name, factory in FACTORIES.items():
        kind = IndexType(check_factory(factory, session.artefact.embedding_dim))
        options = BuildOptions(choose=lambda _, kind=kind: kind)  # type: ignore[misc]
        build_index(open_folder(gallery, str(gallery)), session, folder / f"{name}.index", options)
    _write_journal(folder, session.sha256, session.artefact.embedding_dim)


def _write_journal(folder: Path, sha256: str, dimension: int) -> None:
    from indistill.retrieval.store.journal import open_journal

    with open_journal(folder / "pending.vectors", sha256, dimension) as journal:
        vectors = np.random.default_rng(0).normal(size=(5, dimension)).astype(np.float32)
        journal.keep([f"{number:064x}" for number in range(5)], vectors)


def _write_shard(path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, picture in enumerate(pictures[:6]):
            members = {"png": picture, "json": json.dumps({"label": number % 2}).encode(), "txt": b"a text"}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"part/{number:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _write_tables(folder: Path, pictures: list[bytes]) -> None:
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    rows = {"path": [f"{number:02d}.png" for number in range(8)], "label": ["cat", "dog"] * 4}
    parquet.write_table(pa.table(rows), folder / "manifest.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    cells = [{"bytes": picture, "path": None} for picture in pictures[:6]]
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features=features)
    table.save_to_disk(str(folder / "saved"))


def _write_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.arange(24.0).reshape(4, 6), "a.bias": torch.zeros(4), "steps": torch.tensor(3)}
    save_file(tensors, folder / "weights.safetensors")
    torch.save(tensors, folder / "weights.pt")
    torch.save(tensors, folder / "legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    write_originals(Path(sys.argv[1]))
