import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indistill.errors import DataError, InputError
from indistill.images import decode_image, list_images
from indistill.preprocess import Preprocessing


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_path_bytes_and_image_give_the_same_pixels(tmp_path: Path) -> None:
    content = encode(NOISE, "JPEG")
    (tmp_path / "a.jpg").write_bytes(content)
    forms = [tmp_path / "a.jpg", str(tmp_path / "a.jpg"), content, Image.open(io.BytesIO(content))]
    arrays = [np.asarray(decode_image(form)) for form in forms]
    assert all(np.array_equal(arrays[0], array) for array in arrays)


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode_image(encode(NOISE, "JPEG", exif=exif)).size == (40, 50)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I;16", "F", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = (
        Image.new("I;16", (3, 2), 65535)
        if mode == "I;16"
        else Image.new("RGB", (3, 2), "white").convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    )
    decoded = decode_image(image)
    assert decoded.mode == "RGB"
    assert decoded.getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_values_are_scaled() -> None:
    image = Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16))
    assert decode_image(encode(image)).getpixel((0, 0))[0] == 127


def test_transparency_is_laid_on_white() -> None:
    assert decode_image(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"only text", "not an image that Pillow can read"),
        (encode(NOISE, "JPEG")[:400], "damaged image"),
        (encode(NOISE)[:400], "damaged image"),
    ],
)
def test_bad_files_have_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(content)


def test_a_missing_file_has_a_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        decode_image(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(DataError, match="50x40 pixels, more than the limit of 1,999"):
        decode_image(encode(NOISE), max_pixels=1999)
    for side in (10_000, 20_000):  # Pillow warns of the first, and refuses the second
        with pytest.raises(DataError, match="more pixels than the limit of 89,478,485"):
            decode_image(encode(Image.new("1", (side, side))))


def test_a_folder_without_images_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"holds no images \(\.bmp"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        list_images(tmp_path / "b")
    with pytest.raises(DataError, match="is a file"):
        list_images(tmp_path / "a.txt")


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (7, 93), (32, 32), (480, 640)])
def test_resizing_follows_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    """Equal where the margin is even; where it is odd, torchvision rounds half to even and we always cut down."""
    from torchvision.transforms import functional

    image = NOISE.resize(size)
    ours = Preprocessing(image_size=16, crop=0.8).resize(image)
    resized = functional.resize(image, [20])  # the shorter side; the longer one is rounded down
    left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
    expected = np.asarray(resized.crop((left, top, left + 16, top + 16)))
    difference = np.abs(ours.astype(int) - expected).max()
    assert difference <= (2 if size[1] > 1.9 * size[0] else 0)  # Pillow 13 begins with the columns of tall images
    assert ours.shape == (16, 16, 3)
    assert ours.dtype == np.uint8


def test_normalising_is_that_of_torchvision() -> None:
    import torch
    from torchvision.transforms.v2 import functional

    preprocessing = Preprocessing(8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = functional.normalize(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, list(preprocessing.mean), list(preprocessing.std)
    )
    assert np.allclose(preprocessing.normalise(pixels), expected.numpy(), atol=1e-6)


def test_preprocessing_survives_metadata() -> None:
    preprocessing = Preprocessing(96, 0.875, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    with pytest.raises(InputError, match="positive std"):
        Preprocessing(8, std=(0, 1, 1))
