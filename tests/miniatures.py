"""Writes miniatures of public data sets in their own file formats.

torchvision compares the MD5 of each file with that of the real one, so that the writers for its sets put the sums of
the miniature into its lists, for the time of a test.
"""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WNIDS = ("n01440764", "n01443537")


def make_noise(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def hash_md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar10(root: Path, patch: pytest.MonkeyPatch, count: int = 8) -> None:
    """Writes `count` images for each of the six batches."""
    from torchvision.datasets import CIFAR10

    batches = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    _write_cifar(CIFAR10, root / CIFAR10.base_folder, patch, batches, count, {"labels": 10})


def write_cifar100(root: Path, patch: pytest.MonkeyPatch, count: int = 8) -> None:
    """Writes `count` images for training and as many for testing."""
    from torchvision.datasets import CIFAR100

    _write_cifar(
        CIFAR100,
        root / CIFAR100.base_folder,
        patch,
        ["train", "test"],
        count,
        {"fine_labels": 100, "coarse_labels": 20},
    )


def _write_cifar(
    reader: type, folder: Path, patch: pytest.MonkeyPatch, batches: list[str], count: int, labels: dict[str, int]
) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sums = {}
    for name in batches:
        content = {
            "filenames": [f"{name}_{i}.png" for i in range(count)],
            "batch_label": name,
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            **{key: [i % classes for i in range(count)] for key, classes in labels.items()},
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums[name] = hash_md5(folder / name)
    meta = {key.replace("labels", "label_names"): [f"{key} {i}" for i in range(n)] for key, n in labels.items()}
    file = folder / reader.meta["filename"]
    file.write_bytes(pickle.dumps(meta, protocol=2))
    patch.setattr(reader, "meta", reader.meta | {"md5": hash_md5(file)})
    for part in ("train_list", "test_list"):
        patch.setattr(reader, part, [[name, sums[name]] for name, _ in getattr(reader, part)])


def write_fashionmnist(root: Path, patch: pytest.MonkeyPatch, count: int = 8) -> None:
    """Writes the four compressed idx files, `count` images for training and as many for testing."""
    from torchvision.datasets import FashionMNIST

    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    resources = []
    for name, _ in FashionMNIST.resources:
        if "images" in name:
            body = struct.pack(">IIII", 2051, count, 28, 28)
            body += rng.integers(0, 256, (count, 28, 28), dtype=np.uint8).tobytes()
        else:
            body = struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count))
        (folder / name).write_bytes(gzip.compress(body))
        resources.append((name, hash_md5(folder / name)))
    patch.setattr(FashionMNIST, "resources", resources)


def write_imagenet_archives(folder: Path, patch: pytest.MonkeyPatch, count: int = 4) -> None:
    """Writes the archives of train, val and devkit, `count` images of each class."""
    from scipy.io import savemat
    from torchvision.datasets import imagenet

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = {split: file for split, (file, _) in imagenet.ARCHIVE_META.items()}
    train = {
        f"{wnid}.tar": _pack({f"{wnid}_{i}.JPEG": encode(make_noise(rng, 40, 50)) for i in range(count)})
        for wnid in WNIDS
    }
    (folder / names["train"]).write_bytes(_pack(train))
    classes = [i % len(WNIDS) for i in range(count * len(WNIDS))]
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": encode(make_noise(rng, 50, 40)) for i in range(1, len(classes) + 1)}
    (folder / names["val"]).write_bytes(_pack(val))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = np.array(
        [(i, wnid, f"fish {i}, Piscis {i}", "a fish", 0) for i, wnid in enumerate(WNIDS, start=1)]
        + [(3, "n00001740", "entity", "all of it", 2)],
        dtype=[(field, object) for field in fields],
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    place = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number + 1}\n" for number in classes).encode()
    devkit = {f"{place}/meta.mat": meta.getvalue(), f"{place}/ILSVRC2012_validation_ground_truth.txt": truth}
    (folder / names["devkit"]).write_bytes(gzip.compress(_pack(devkit)))
    sums = {split: (file, hash_md5(folder / file)) for split, file in names.items()}
    patch.setattr(imagenet, "ARCHIVE_META", sums)


def write_imagenet_folders(folder: Path, count: int = 2) -> None:
    """Writes a folder for each class, of training and validation images."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for wnid in WNIDS:
            (folder / split / wnid).mkdir(parents=True)
            for i in range(count):
                make_noise(rng, 40, 50).save(folder / split / wnid / f"{wnid}_{i}.JPEG", format="JPEG")


def write_cub(root: Path, count: int = 4) -> Path:
    """Writes the official folder with the classes 1, 2, 101 and 102, `count` images of each, and returns it."""
    folder = root / "CUB_200_2011"
    classes = {1: "001.Albatross", 2: "002.Auk", 101: "101.Pelican", 102: "102.Phoebe"}
    rng = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": []}
    for number, title in classes.items():
        (folder / "images" / title).mkdir(parents=True)
        for i in range(count):
            image = len(lines["images"]) + 1
            path = f"{title}/{title[4:]}_{i:04d}_{image}.jpg"
            make_noise(rng, 48, 40).save(folder / "images" / path)
            lines["images"].append(f"{image} {path}")
            lines["image_class_labels"].append(f"{image} {number}")
            lines["train_test_split"].append(f"{image} {(i + 1) % 2}")
            lines["bounding_boxes"].append(f"{image} 1.0 2.0 30.0 40.0")
    lines["classes"] = [f"{number} {title}" for number, title in classes.items()]
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder


def _pack(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_shard(path: Path, files: dict[str, bytes]) -> Path:
    """Writes a tar file, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_pack(files))
    return path
