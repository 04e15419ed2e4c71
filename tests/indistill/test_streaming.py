import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from indistill.data.ahead import map_ahead
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels, StreamedPixels, load_pixels, open_pixels, read_blocks, scan_pixels
from indistill.data.sets import FolderSet, open_folder
from indistill.errors import DataError
from indistill.preprocess import Preprocessing

PREPROCESSING = Preprocessing(16, 0.875, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
COUNT = 23  # six batches of four, the last one of three


@pytest.fixture
def images(tmp_path: Path) -> FolderSet:
    """Returns 23 readable images in two classes, and a damaged one among them."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / f"class {number % 2}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(path)
    (tmp_path / "class 0" / "10 damaged.png").write_bytes(b"no image")
    return open_folder(tmp_path, "mine")


def make_batches(pixels: Pixels | StreamedPixels, **changes) -> Batches:
    settings = {"batch_size": 4, "flip": True, "crop_padding": 3, "seed": 5, "device": torch.device("cpu")} | changes
    return Batches(pixels, PREPROCESSING, **settings)


def draw(batches: Batches, epochs: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [batch for _ in range(epochs) for batch in batches.draw_epoch()]


def assert_equal(found: list[tuple[torch.Tensor, torch.Tensor]], expected: list[tuple[torch.Tensor, torch.Tensor]]):
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("padding", [0, 3, 20])
def test_streamed_batches_are_those_in_memory_bit_for_bit(images: FolderSet, workers: int, padding: int) -> None:
    memory = make_batches(load_pixels(images, PREPROCESSING), crop_padding=padding)
    streamed = make_batches(scan_pixels(images, PREPROCESSING, workers=workers), crop_padding=padding)
    assert_equal(draw(streamed), draw(memory))
    assert len(streamed) == len(memory) == 6


def test_another_seed_gives_other_streamed_batches(images: FolderSet) -> None:
    pixels = scan_pixels(images, PREPROCESSING)
    first, second = draw(make_batches(pixels), 1), draw(make_batches(pixels, seed=6), 1)
    assert not torch.equal(first[0][0], second[0][0])
    assert first[0][0].is_contiguous(memory_format=torch.channels_last)


def test_what_is_known_of_a_streamed_set_is_what_is_known_in_memory(images: FolderSet) -> None:
    memory, streamed = load_pixels(images, PREPROCESSING), scan_pixels(images, PREPROCESSING)
    assert streamed.fingerprint == memory.fingerprint
    assert streamed.skipped == memory.skipped
    assert [skipped.name for skipped in streamed.skipped] == ["class 0/10 damaged.png"]
    assert (streamed.name, streamed.classes, len(streamed)) == (memory.name, memory.classes, COUNT)
    assert streamed.labels.tolist() == memory.labels.tolist()


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole_one(images: FolderSet, stream: bool, start: int) -> None:
    pixels = scan_pixels(images, PREPROCESSING) if stream else load_pixels(images, PREPROCESSING)
    whole, resumed = make_batches(pixels), make_batches(pixels)
    expected = draw(whole)
    assert_equal([*resumed.draw_epoch(start), *resumed.draw_epoch()], expected[start:])


def test_the_batches_passed_over_are_not_read(images: FolderSet) -> None:
    read: list[int] = []

    class Recorded(FolderSet):
        def read(self, position: int) -> Image.Image:
            read.append(position)
            return super().read(position)

    recorded = Recorded(images.name, images.folder, images.names, images.classes, images.labels)
    batches = make_batches(scan_pixels(recorded, PREPROCESSING, workers=1))
    read.clear()
    assert len(list(batches.draw_epoch(5))) == 1
    assert len(read) == 3


@pytest.mark.parametrize("stream", [False, True], ids=["memory", "streamed"])
def test_the_generator_stands_where_the_last_batch_left_it_not_further(images: FolderSet, stream: bool) -> None:
    memory = make_batches(load_pixels(images, PREPROCESSING))
    batches = make_batches(scan_pixels(images, PREPROCESSING)) if stream else memory
    reference = torch.Generator().manual_seed(5)
    torch.randperm(COUNT, generator=reference)
    torch.randint(7, (2, 4), generator=reference)
    torch.rand(4, generator=reference)
    next(batches.draw_epoch())
    assert torch.equal(batches.generator.get_state(), reference.get_state())


def test_a_set_above_the_limit_is_streamed(images: FolderSet) -> None:
    needed = (COUNT + 1) * 16 * 16 * 3 / 2**30
    assert isinstance(open_pixels(images, PREPROCESSING, memory_limit_gb=needed), Pixels)
    assert isinstance(open_pixels(images, PREPROCESSING, memory_limit_gb=0.99 * needed), StreamedPixels)
    with pytest.raises(DataError, match=r"24 images of 16x16 need 0\.0 GiB, more than the limit of 0"):
        load_pixels(images, PREPROCESSING, memory_limit_gb=0)


@pytest.mark.parametrize("size", [1, 5, COUNT + 1])
def test_the_blocks_of_a_set_are_the_set(images: FolderSet, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("indistill.data.pixels.BLOCK_BYTES", size * 16 * 16 * 3)
    whole, blocks = load_pixels(images, PREPROCESSING), list(read_blocks(images, PREPROCESSING))
    assert len(blocks) == -(-(COUNT + 1) // size)
    assert max(len(block) + len(block.skipped) for block in blocks) == size
    assert np.array_equal(np.concatenate([block.images for block in blocks]), whole.images)
    assert np.concatenate([block.labels for block in blocks]).tolist() == whole.labels.tolist()
    assert tuple(name for block in blocks for name in block.names) == whole.names
    assert tuple(skipped for block in blocks for skipped in block.skipped) == whole.skipped


def test_an_image_that_disappears_is_named(images: FolderSet) -> None:
    batches = make_batches(scan_pixels(images, PREPROCESSING))
    (images.folder / "class 1" / "07.png").unlink()
    with pytest.raises(DataError, match=r"data 'mine': class 1/07\.png changed during the training: no such file"):
        draw(batches, 1)


def test_a_streamed_set_of_bad_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_text("text")
    with pytest.raises(DataError, match=r"none of 1 images can be read; 1\.jpg: not an image"):
        scan_pixels(open_folder(tmp_path, "mine"), PREPROCESSING)


def test_work_ahead_keeps_its_order_and_its_distance() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    results = map_ahead(work, items(), workers=3, ahead=4)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3, 4]
    assert list(results) == [number * number for number in range(1, 20)]


def test_work_ahead_ends_with_its_reader() -> None:
    before = threading.active_count()
    results = map_ahead(lambda number: number, range(1000), workers=3, ahead=10)
    next(results)
    results.close()
    assert threading.active_count() == before
