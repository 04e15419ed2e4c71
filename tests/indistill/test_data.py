from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, load_pixels
from indistill.data.sets import open_folder, require_labels, sample_images
from indistill.data.specs import open_images
from indistill.errors import DataError
from indistill.preprocess import Preprocessing

CPU = torch.device("cpu")


def make_pixels(count: int, side: int = 8, seed: int = 0) -> Pixels:
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Pixels("mine", images, np.arange(count, dtype=np.int64), tuple(map(str, range(count))), (), ())


def make_folder(folder: Path, files: dict[str, tuple[int, int, int]]) -> Path:
    for name, colour in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), colour).save(path)
    return folder


def make_batches(pixels: Pixels, preprocessing: Preprocessing, **changes) -> Batches:
    settings = {"batch_size": 4, "flip": False, "crop_padding": 0, "seed": 0, "device": CPU} | changes
    return Batches(pixels, preprocessing, **settings)


def test_digits_have_fixed_stratified_splits() -> None:
    train, test = open_images("digits/train"), open_images("digits/test")
    assert (len(train.names), len(test.names)) == (1352, 445)
    assert not set(train.names) & set(test.names)
    assert np.bincount(test.labels).min() >= 43
    assert test.read(0).mode == "RGB"
    assert len(open_images("digits").names) == 1797


def test_classes_are_the_first_folders_and_order_is_by_path(tmp_path: Path) -> None:
    make_folder(tmp_path, {"b/2.png": (2, 0, 0), "a/x/1.PNG": (1, 0, 0), "b/10.png": (3, 0, 0)})
    images = open_folder(tmp_path, "mine")
    assert images.names == ["a/x/1.PNG", "b/10.png", "b/2.png"]
    assert images.classes == ("a", "b")
    assert images.labels.tolist() == [0, 1, 1]
    assert images.read(2).getpixel((0, 0)) == (2, 0, 0)


def test_an_image_outside_the_folders_means_no_classes(tmp_path: Path) -> None:
    images = open_folder(make_folder(tmp_path, {"a/1.png": (0, 0, 0), "2.png": (0, 0, 0)}), "mine")
    assert images.classes == ()
    assert images.labels.tolist() == [-1, -1]
    with pytest.raises(DataError, match="no classes; train needs a sub-folder"):
        require_labels(images, "train")


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/1.png": (0, 0, 0), ".thumbs/2.png": (0, 0, 0), "a/.3.png": (0, 0, 0)})
    assert open_folder(tmp_path, "mine").names == ["a/1.png"]


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, {"train/a/1.png": (0, 0, 0), "test/a/2.png": (0, 0, 0)})
    with pytest.raises(DataError, match="holds the splits test, train: name one"):
        open_folder(tmp_path, "mine")
    assert open_folder(tmp_path / "train", "mine").classes == ("a",)


def test_cifar10_is_downloaded_only_when_told_to(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--download fetches it"):
        open_images("cifar10/test", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cifar10_is_read_from_torchvisions_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    rows = np.arange(2 * 3072, dtype=np.int64).reshape(2, 3072).astype(np.uint8)
    names = [f"class {i}" for i in range(10)]
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", write("test_batch", {"data": rows, "labels": [3, 7]})]])
    monkeypatch.setattr(CIFAR10, "train_list", [])
    meta = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    images = open_images("cifar10/test", root=tmp_path)
    assert images.labels.tolist() == [3, 7]
    assert images.classes[7] == "class 7"
    assert np.asarray(images.read(0))[0, 1].tolist() == [1, 1024 % 256 + 1, 2048 % 256 + 1]


def test_an_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(DataError, match="Did you mean 'digits'"):
        open_images("digit/train")
    with pytest.raises(DataError, match="no split 'validation'; use digits, digits/train, digits/test"):
        open_images("digits/validation")


def test_bad_images_are_left_out_and_no_row_shifts(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a/1.png": (1, 1, 1), "a/3.png": (3, 3, 3), "b/4.png": (4, 4, 4)})
    (tmp_path / "a/2.png").write_bytes(b"")
    pixels = load_pixels(open_folder(tmp_path, "mine"), Preprocessing(4))
    assert pixels.images[:, 0, 0, 0].tolist() == [1, 3, 4]
    assert pixels.labels.tolist() == [0, 0, 1]
    assert [(skipped.name, skipped.reason) for skipped in pixels.skipped] == [("a/2.png", "empty file")]


def test_a_set_of_bad_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("text")
    with pytest.raises(DataError, match=r"none of 1 images can be read; 1\.jpg: not an image"):
        load_pixels(open_folder(tmp_path, "mine"), Preprocessing(4))


def test_a_sample_is_spread_over_the_set() -> None:
    images = open_images("digits/train")
    sample = sample_images(images, 4)
    assert sample.names == [images.names[i] for i in (0, 338, 676, 1014)]
    assert sample.labels.tolist() == images.labels[[0, 338, 676, 1014]].tolist()
    assert len(sample_images(images, 10_000).names) == 1352


def test_an_epoch_shows_every_image_once_in_a_new_order() -> None:
    batches = make_batches(make_pixels(11), Preprocessing(8))
    first = torch.cat([labels for _, labels in batches.draw_epoch()])
    second = torch.cat([labels for _, labels in batches.draw_epoch()])
    assert sorted(first.tolist()) == list(range(11))
    assert first.tolist() != second.tolist()


def test_a_single_image_is_not_left_for_a_batch_of_its_own() -> None:
    batches = make_batches(make_pixels(9), Preprocessing(8))
    assert [len(labels) for _, labels in batches.draw_epoch()] == [4, 4]
    assert len(batches) == 2


def test_without_augmentation_a_batch_is_the_normalised_images() -> None:
    pixels, preprocessing = make_pixels(4), Preprocessing(8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    ((images, labels),) = make_batches(pixels, preprocessing).draw_epoch()
    expected = torch.from_numpy(preprocessing.normalise(pixels.images[labels.numpy()]))
    assert torch.allclose(images, expected, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_each_image_has_a_crop_and_a_flip_of_its_own_out_of_the_padded_image() -> None:
    pixels, preprocessing = make_pixels(64), Preprocessing(8, mean=(0, 0, 0), std=(1 / 255,) * 3)
    batches = make_batches(pixels, preprocessing, batch_size=64, flip=True, crop_padding=2, seed=3)
    ((images, labels),) = batches.draw_epoch()
    seen = set()
    for image, label in zip(images.permute(0, 2, 3, 1).numpy().round(), labels.tolist(), strict=True):
        padded = np.pad(pixels.images[label], ((2, 2), (2, 2), (0, 0)))
        crops = {
            (row, column, flip): padded[row : row + 8, column : column + 8][:, :: -1 if flip else 1]
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
        }
        matches = [key for key, crop in crops.items() if np.array_equal(crop, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 20
    assert np.mean([flip for _, _, flip in seen]) == pytest.approx(0.5, abs=0.3)


def test_the_seed_decides_order_and_augmentation() -> None:
    def draw(seed: int) -> torch.Tensor:
        batches = make_batches(make_pixels(8), Preprocessing(8), flip=True, crop_padding=1, seed=seed)
        return torch.cat([images for images, _ in batches.draw_epoch()])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
