"""Readers of the data sets with a name, of manifests, shards and saved data sets."""

import json
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indistill.data.named import SPLITS
from indistill.data.sets import ImageSet, number_labels, require_labels
from indistill.data.specs import locate_data, open_images
from indistill.errors import DataError
from tests.miniatures import (
    WNIDS,
    encode,
    make_noise,
    write_cifar100,
    write_cub,
    write_fashionmnist,
    write_imagenet_archives,
    write_imagenet_folders,
    write_shard,
)


def make_png(value: int) -> bytes:
    return encode(Image.new("RGB", (6, 4), (value, 0, 0)), "PNG")


def read_reds(images: ImageSet) -> list[int]:
    return [images.read(i).getpixel((0, 0))[0] for i in range(len(images.names))]


def list_labels(images: ImageSet) -> list[str | None]:
    return [images.classes[label] if label >= 0 else None for label in images.labels]


def test_cifar100_has_its_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    images = open_images("cifar100/test", root=tmp_path)
    assert (len(images.names), len(images.classes)) == (8, 100)
    assert images.labels.tolist() == list(range(8))
    assert images.read(0).size == (32, 32)
    assert len(open_images("cifar100", root=tmp_path).names) == 16


def test_fashionmnist_is_rgb_and_unpacked_only_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashionmnist(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"Fashion-MNIST is not in .*; --download fetches it"):
        open_images("fashionmnist/train", root=tmp_path)
    images = open_images("fashionmnist/train", root=tmp_path, download=True)
    grey = np.asarray(images.read(3))
    assert grey.shape == (28, 28, 3)
    assert (grey == grey[..., :1]).all()
    assert images.classes[images.labels[7]] == "Sneaker"
    assert open_images("fashionmnist/test", root=tmp_path).labels.tolist() == list(range(8))


def test_imagenet_is_unpacked_by_torchvision_only_when_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "imagenet"
    write_imagenet_archives(folder, monkeypatch)
    before = sorted(folder.iterdir())
    with pytest.raises(DataError, match=r"but ILSVRC2012_img_val\.tar and .*: --download unpacks them"):
        open_images("imagenet/val", root=tmp_path)
    assert sorted(folder.iterdir()) == before
    images = open_images("imagenet/val", root=tmp_path, download=True)
    assert images.classes == WNIDS
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    assert images.names[:2] == ["n01440764/ILSVRC2012_val_00000001.JPEG", "n01440764/ILSVRC2012_val_00000003.JPEG"]
    assert (folder / "meta.bin").is_file()
    assert len(open_images("imagenet/train", root=tmp_path, download=True).names) == 8


def test_a_damaged_archive_of_imagenet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_imagenet_archives(tmp_path / "imagenet", monkeypatch)
    (tmp_path / "imagenet" / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"torchvision cannot unpack .*img_val\.tar \(The archive"):
        open_images("imagenet/val", root=tmp_path, download=True)


@pytest.mark.parametrize("place", ["imagenet", "."])
def test_imagenet_is_read_from_plain_folders(tmp_path: Path, place: str) -> None:
    write_imagenet_folders(tmp_path / place)
    images = open_images("imagenet/train", root=tmp_path)
    assert (images.classes, images.labels.tolist()) == (WNIDS, [0, 0, 1, 1])
    assert images.root == str((tmp_path / place / "train").resolve())


def test_imagenet_without_folders_of_classes_is_refused(tmp_path: Path) -> None:
    write_imagenet_folders(tmp_path)
    make_noise(np.random.default_rng(0), 4, 4).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", format="JPEG")
    with pytest.raises(DataError, match="val holds images outside of folders for each class"):
        open_images("imagenet/val", root=tmp_path)


def test_cub_has_the_official_split_and_that_of_metric_learning(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train, test = open_images("cub200/train", root=tmp_path), open_images("cub200/test", root=tmp_path)
    assert train.classes == test.classes == ("001.Albatross", "002.Auk", "101.Pelican", "102.Phoebe")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not set(train.names) & set(test.names)
    first, last = open_images("cub200/first100", root=tmp_path), open_images("cub200/last100", root=tmp_path)
    assert (first.classes, last.classes) == (("001.Albatross", "002.Auk"), ("101.Pelican", "102.Phoebe"))
    assert first.labels.tolist() == last.labels.tolist() == [0] * 4 + [1] * 4
    assert last.names[0].startswith("101.Pelican/")
    assert last.read(0).size == (40, 48)
    assert len(open_images("cub200", root=tmp_path / "CUB_200_2011").names) == 16


CUB_FAULTS = {
    "file missing": ("classes.txt", None, r"classes\.txt of CUB-200-2011 is not in .*CUB_200_2011\.tgz of https://"),
    "ids that differ": ("train_test_split.txt", "1 1\n", "has other image ids than images.txt"),
    "class unknown": ("classes.txt", "1 001.Albatross\n", "has no class 2"),
    "line of another form": ("images.txt", "1 a b.jpg\n", "images.txt: line 1 is not a number and a word"),
    "word for a number": ("image_class_labels.txt", "1 one\n", "two numbers a line are needed.*not 'one'"),
}


@pytest.mark.parametrize(("name", "content", "words"), CUB_FAULTS.values(), ids=CUB_FAULTS)
def test_a_cub_folder_with_a_fault_is_refused(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    file = write_cub(tmp_path) / name
    file.unlink()
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        open_images("cub200/train", root=tmp_path)


@pytest.mark.parametrize("spec", [f"{name}/{splits[-1]}" for name, splits in SPLITS.items() if name != "digits"])
def test_a_set_that_is_not_there_is_said_to_be_missing_and_nothing_is_written(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match=r"--download|unpack CUB_200_2011\.tgz"):
        open_images(spec, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


ROWS = [("b/1.png", "cat"), ("a 2.png", "dog"), ("c.png", "")]
HEADS = ("path", "label")


def write_manifest(path: Path, rows: list[tuple[str, str]], heads: tuple[str, str] = HEADS) -> Path:
    records = [dict(zip(heads, row, strict=True)) for row in rows]
    if path.suffix == ".csv":
        lines = [",".join(heads), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_keeps_its_order_and_its_labels(tmp_path: Path, kind: str) -> None:
    path = write_manifest(tmp_path / f"m.{kind}", ROWS)
    (tmp_path / "b").mkdir()
    for value, (name, _) in enumerate(ROWS, start=1):
        (tmp_path / name).write_bytes(make_png(value))
    images = open_images(str(path))
    assert list(images.names) == ["b/1.png", "a 2.png", "c.png"]
    assert list_labels(images) == ["cat", "dog", None]
    assert read_reds(images) == [1, 2, 3]
    assert (images.name, images.root) == (str(path), str(tmp_path.resolve()))


def test_a_manifest_needs_no_labels(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("note,path\nx,1.png\ny,2.png\n", encoding="utf-8")
    images = open_images(str(tmp_path / "m.csv"))
    assert (images.classes, images.labels.tolist()) == ((), [-1, -1])


def test_numbers_of_a_parquet_file_are_labels_though_some_are_missing(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"path": ["1.png", "2.png", "3.png"], "label": [10.0, float("nan"), 9.0]})
    parquet.write_table(table, tmp_path / "m.parquet")
    images = open_images(str(tmp_path / "m.parquet"))
    assert (images.classes, list_labels(images)) == (("9", "10"), ["10", None, "9"])


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_folder_of_a_hugging_face_metadata_file_is_read_by_it(tmp_path: Path, kind: str) -> None:
    write_manifest(tmp_path / f"metadata.{kind}", [("x.png", "cat"), ("y.png", "dog")], ("file_name", "label"))
    for value, name in enumerate(("x.png", "y.png", "not named.png")):
        (tmp_path / name).write_bytes(make_png(value))
    images = open_images(str(tmp_path))
    assert list_labels(images) == ["cat", "dog"]
    assert read_reds(images) == [0, 1]


def test_another_file_of_that_name_does_not_make_a_folder_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("author,image_file_name\nme,2020\n", encoding="utf-8")
    (tmp_path / "x.png").write_bytes(make_png(1))
    assert open_images(str(tmp_path)).names == ["x.png"]


def test_a_library_that_is_missing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_manifest(tmp_path / "m.parquet", ROWS)
    saved = save_dataset(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'indistill\[parquet\]', or use a \.csv"):
        open_images(str(path))
    with pytest.raises(DataError, match=r"pip install 'indistill\[huggingface\]'"):
        open_images(str(saved))


def test_labels_that_are_all_numbers_are_ordered_as_numbers() -> None:
    assert number_labels(["10", "9", None])[0] == ("9", "10")
    assert number_labels(["10", "9", "a"])[0] == ("10", "9", "a")


def write_shards(folder: Path) -> None:
    write_shard(
        folder / "train-000000.tar",
        {
            "dir/a.png": make_png(1),
            "dir/a.cls": b"7\n",
            "b.v2.PNG": make_png(99),  # another part of sample b: its kind is v2.PNG
            "b.png": make_png(2),
            "b.json": b'{"label": 10, "caption": "two"}',
        },
    )
    write_shard(
        folder / "train-000001.tar",
        {"a.txt": b"7", "a.jpg": encode(Image.new("RGB", (6, 4), (200, 0, 0))), "c.cls": b"1"},
    )


SHARD_SPECS = ["{folder}", "{folder}/train-{{000000..000001}}.tar", "{folder}/train-*.tar"]


@pytest.mark.parametrize("spec", SHARD_SPECS)
def test_shards_are_read_in_their_order_with_the_labels_beside_the_images(tmp_path: Path, spec: str) -> None:
    write_shards(tmp_path / "shards")
    before = sorted(tmp_path.rglob("*"))
    images = open_images(spec.format(folder=tmp_path / "shards"))
    assert list(images.names) == ["train-000000.tar/dir/a.png", "train-000000.tar/b.png", "train-000001.tar/a.jpg"]
    assert list_labels(images) == ["7", "10", "7"]
    assert read_reds(images) == [1, 2, pytest.approx(200, abs=3)]
    assert images.fetch(1).content == make_png(2)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_single_shard_is_a_data_set(tmp_path: Path) -> None:
    write_shards(tmp_path)
    images = open_images(str(tmp_path / "train-000001.tar"))
    assert (list(images.names), images.root) == (["train-000001.tar/a.jpg"], str(tmp_path.resolve()))


def test_a_folder_with_images_beside_a_tar_file_stays_a_folder(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "x.png").write_bytes(make_png(1))
    assert open_images(str(tmp_path)).names == ["x.png"]


def test_a_pattern_of_shards_means_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_data("s/x-{00..11}.tar") == str(tmp_path.resolve() / "s/x-{00..11}.tar")
    assert locate_data("cub200/train") == "cub200/train"


def write_cut(path: Path, size: int) -> None:
    write_shard(path, {"a.png": make_png(1), "b.png": make_png(2)})
    path.write_bytes(path.read_bytes()[:size])


def write_with_link(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)


SHARD_FAULTS = {
    "empty file": (lambda path: path.write_bytes(b""), "is damaged, compressed or no tar file"),
    "text": (lambda path: path.write_text("text " * 200), "is damaged, compressed or no tar file"),
    "compressed": (lambda path: tarfile.open(path, "w:gz").close(), "is damaged, compressed or no tar file"),
    "no images": (lambda path: write_shard(path, {"a.cls": b"1"}), r"holds no images \(\.bmp"),
    "no members": (lambda path: write_shard(path, {}), r"holds no images \(\.bmp"),
    "links alone": (write_with_link, r"holds no images \(\.bmp"),
    "cut in a header": (lambda path: write_cut(path, 1024 + 100), "damaged"),
    "cut in an image": (lambda path: write_cut(path, 1024 + 512 + 50), "damaged"),
    "cut between images": (lambda path: write_cut(path, 1024), "has no end mark at byte 1024"),
    "name with dots": (lambda path: write_shard(path, {"../a.png": make_png(1)}), r"'\.\./a\.png' leads out of it"),
    "absolute name": (lambda path: write_shard(path, {"/a.png": make_png(1)}), "'/a.png' leads out of it"),
    "two images": (
        lambda path: write_shard(path, {"a.png": make_png(1), "a.jpg": make_png(1)}),
        "a.png and a.jpg have the same key a",
    ),
    "label of another form": (
        lambda path: write_shard(path, {"a.png": make_png(1), "a.json": b"[1]"}),
        "a.json is not a label",
    ),
    "label that is no JSON": (
        lambda path: write_shard(path, {"a.png": make_png(1), "a.json": b"{"}),
        "a.json cannot be read as a label",
    ),
    "label too long": (
        lambda path: write_shard(path, {"a.png": make_png(1), "a.txt": bytes(2**20 + 1)}),
        "a.txt has 1,048,577 bytes, too many for a label",
    ),
}


@pytest.mark.parametrize(("write", "words"), SHARD_FAULTS.values(), ids=SHARD_FAULTS)
def test_a_shard_with_a_fault_is_refused_by_name(tmp_path: Path, write, words: str) -> None:
    write_shards(tmp_path)
    write(tmp_path / "train-000002.tar")
    with pytest.raises(DataError, match=rf"shard .*train-000002\.tar.*{words}"):
        open_images(str(tmp_path))


def test_shards_that_are_missing_are_counted(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with pytest.raises(DataError, match=r"2 of 4 shards are missing, the first is .*train-000002\.tar"):
        open_images(f"{tmp_path}/train-{{000000..000003}}.tar")
    with pytest.raises(DataError, match="no file has such a name"):
        open_images(f"{tmp_path}/test-*.tar")
    with pytest.raises(DataError, match=r"\{3\.\.1\} is no range"):
        open_images(f"{tmp_path}/train-{{3..1}}.tar")


def save_dataset(folder: Path, *, splits: bool = False, files: Path | None = None) -> Path:
    import datasets

    cells: list[object] = [make_png(1), make_png(2), None]
    if files is not None:
        (files / "x.png").write_bytes(make_png(1))
        cells[0] = str(files / "x.png")
    cells = [{"bytes": cell, "path": None} if isinstance(cell, bytes) else cell for cell in cells]
    features = datasets.Features(
        {
            "note": datasets.Value("string"),
            "photo": datasets.Image(),
            "label": datasets.ClassLabel(names=["dog", "cat"]),
        }
    )
    table = datasets.Dataset.from_dict({"note": list("abc"), "photo": cells, "label": [1, 0, None]}, features=features)
    datasets.disable_progress_bars()
    (datasets.DatasetDict({"train": table}) if splits else table).save_to_disk(str(folder))
    return folder


def test_a_saved_dataset_gives_its_images_and_the_names_of_its_labels(tmp_path: Path) -> None:
    images = open_images(str(save_dataset(tmp_path / "saved", files=tmp_path)))
    assert (list(images.names), list_labels(images)) == (["0", "1", "2"], ["cat", "dog", None])
    assert [images.read(i).getpixel((0, 0))[0] for i in (0, 1)] == [1, 2]
    assert [images.fetch(i).content for i in (0, 1)] == [make_png(1), make_png(2)]
    with pytest.raises(DataError, match="no image in this row"):
        images.read(2)


def test_of_a_saved_dataset_a_split_is_named(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved", splits=True)
    with pytest.raises(DataError, match="holds the splits train: name one"):
        open_images(str(folder))
    assert len(open_images(str(folder / "train")).names) == 3


def test_a_damaged_saved_dataset_is_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved")
    for path in folder.glob("*.arrow"):
        path.write_bytes(b"no table")
    with pytest.raises(DataError, match="the datasets package cannot read it"):
        open_images(str(folder))


def test_a_saved_dataset_whose_offsets_lead_out_of_its_file_is_refused(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved")
    (path,) = folder.glob("*.arrow")
    first, second = len(make_png(1)), len(make_png(2))
    offsets = struct.pack("<3i", 0, first, first + second)
    content = path.read_bytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 2**30, 2**31 - 1)))  # Arrow would follow them
    with pytest.raises(DataError, match="the datasets package cannot read it"):
        open_images(str(folder))


def test_labels_that_are_missing_are_counted(tmp_path: Path) -> None:
    images = open_images(str(write_manifest(tmp_path / "m.csv", ROWS)))
    with pytest.raises(DataError, match=r"1 of 3 images have no label, the first is c\.png; train needs one for each"):
        require_labels(images, "train")
