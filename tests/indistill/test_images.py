import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from indistill.errors import DataError, InputError
from indistill.images import MAX_FILE_BYTES, count_pixels, decode_image, list_images, read_pixels
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


def write_png(depth: int, colours: int, values: list[int], transparent: list[int]) -> bytes:
    """Returns a PNG of one row, whose colour `transparent` has no opacity; Pillow writes none of 16 bits."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    channels = {0: 1, 2: 3, 6: 4}[colours]
    row = b"".join(value.to_bytes(depth // 8, "big") for value in values)
    header = struct.pack(">IIBBBBB", len(values) // channels, 1, depth, colours, 0, 0, 0)
    key = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b""
    body = chunk(b"IHDR", header) + key + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("depth", "colours", "values", "transparent", "expected"),
    [
        (8, 0, [7, 200], [7], [(255, 255, 255), (200, 200, 200)]),
        (16, 0, [1000, 40000], [1000], [(255, 255, 255), (155, 155, 155)]),
        (8, 2, [1, 2, 3, 9, 8, 7], [1, 2, 3], [(255, 255, 255), (9, 8, 7)]),
        (16, 2, [1000, 2000, 3000, 65535, 0, 0], [1000, 2000, 3000], [(255, 255, 255), (255, 0, 0)]),
        (16, 6, [0, 0, 0, 0, 65535, 0, 0, 65535], [], [(255, 255, 255), (255, 0, 0)]),
        (8, 6, [255, 0, 0, 128, 0, 0, 255, 255], [], [(255, 127, 127), (0, 0, 255)]),
    ],
)
def test_transparent_pixels_become_white(
    depth: int, colours: int, values: list[int], transparent: list[int], expected: list[tuple[int, int, int]]
) -> None:
    decoded = decode_image(write_png(depth, colours, values, transparent))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == expected


def test_a_palette_has_its_colours_and_its_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_image(encode(image)).getpixel((1, 0)) == (200, 100, 50)
    see_through = decode_image(encode(image, transparency=0))
    assert [see_through.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]
    grey = decode_image(encode(Image.new("LA", (1, 1), (100, 128))))
    assert grey.getpixel((0, 0)) == pytest.approx((177, 177, 177), abs=1)


def test_printing_colours_become_those_of_the_screen() -> None:
    red = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red.getpixel((8, 8)) == pytest.approx((255, 0, 0), abs=4)


def test_floats_that_are_no_numbers_are_black_or_white() -> None:
    image = Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 300, 65535]], dtype=np.float32))
    decoded = decode_image(encode(image, "TIFF"))
    assert [decoded.getpixel((x, 0))[0] for x in range(5)] == [0, 255, 0, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_as_pillow_does(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        stored = encode(NOISE, kind, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored)))
        assert np.array_equal(np.asarray(decode_image(stored)), np.asarray(expected))


def test_damaged_metadata_does_not_lose_the_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(NOISE, "JPEG", exif=exif)
    damaged = stored.replace(b"Exif\0\0MM\0*", b"Exif\0\0MMxx").replace(b"Exif\0\0II*\0", b"Exif\0\0IIxx")
    assert damaged != stored
    assert decode_image(damaged).size == NOISE.size


@pytest.mark.parametrize("kind", ["PCX", "ICO", "TGA", "EPS", "PDF", "SGI"])
def test_the_readers_of_other_formats_are_never_run(kind: str) -> None:
    with pytest.raises(DataError, match="not an image that Pillow can read"):
        decode_image(encode(NOISE, kind))


@pytest.mark.parametrize(
    ("size", "smallest", "expected"),
    [
        ((160, 96), 12, (20, 12)),
        ((160, 96), 13, (40, 24)),
        ((160, 96), 48, (80, 48)),
        ((160, 96), 49, (160, 96)),
        ((164, 100), 12, (41, 25)),  # an eighth is no whole number
        ((161, 96), 12, (161, 96)),
    ],
)
def test_a_draft_keeps_its_proportions_and_the_smallest_side(
    size: tuple[int, int], smallest: int, expected: tuple[int, int]
) -> None:
    image = NOISE.resize(size)
    assert decode_image(encode(image, "JPEG"), smallest=smallest).size == expected
    assert decode_image(encode(image, "PNG"), smallest=smallest).size == size
    assert decode_image(image, smallest=smallest).size == size
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(image, "JPEG", exif=exif), smallest=smallest).size == expected[::-1]


@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_draft_resized_is_the_full_decode_resized_but_for_rounding(subsampling: int) -> None:
    photo = NOISE.resize((1024, 768), Image.Resampling.BICUBIC)
    stored, preprocessing = encode(photo, "JPEG", quality=90, subsampling=subsampling), Preprocessing(24, 0.75)
    assert decode_image(stored, smallest=4 * 32).size == (256, 192)
    difference = np.abs(read_pixels(stored, preprocessing).astype(int) - preprocessing.resize(decode_image(stored)))
    assert 0 < difference.mean() < 0.5
    assert difference.max() <= 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of Pillow
def test_a_file_and_its_bytes_have_the_same_reason(tmp_path: Path) -> None:
    far = b"II+\0\x08\0\0\0" + (2**62).to_bytes(8, "little") + bytes(40)  # a BigTIFF whose parts lie beyond any file
    (tmp_path / "far.tif").write_bytes(far)
    for source in (far, tmp_path / "far.tif"):
        with pytest.raises(DataError, match="not an image that Pillow can read"):
            decode_image(source)


def test_what_is_no_file_or_has_too_many_bytes_has_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "long.jpg").open("wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    for name, reason in {"pipe.jpg": "a pipe or a device", "long.jpg": "bytes, more than the limit of 536,870"}.items():
        with pytest.raises(DataError, match=reason):
            decode_image(tmp_path / name)
    with pytest.raises(DataError, match="is a folder"):
        decode_image(tmp_path)


KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def test_images_are_found_by_their_first_bytes_where_the_suffix_says_nothing(tmp_path: Path) -> None:
    for kind in KINDS:
        (tmp_path / kind).write_bytes(encode(NOISE, kind))
    (tmp_path / "photo.bak").write_bytes(encode(NOISE))
    (tmp_path / ".hidden").write_bytes(encode(NOISE))
    (tmp_path / "cars").write_text("BMW, and P5 for parking")
    (tmp_path / "prices.txt").write_text("P5 is where we park, II* is a hotel")
    (tmp_path / "empty").touch()
    (tmp_path / "text.PNG").write_text("taken by its suffix, and skipped when it is read")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert [path.name for path in list_images(tmp_path)] == sorted([*KINDS, "photo.bak", "text.PNG"])


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.png").write_bytes(encode(NOISE))
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "gone").symlink_to(folder / "nothing")
    (folder / "linked").symlink_to(folder / "sub" / "a.png")
    found = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    assert found == ["gone.png", "linked", "loop.png", "sub/a.png"]
    (tmp_path / "link").symlink_to(folder)
    assert len(list_images(tmp_path / "link")) == 4


def test_names_may_be_of_any_bytes_and_are_sorted_by_folder(tmp_path: Path) -> None:
    names = ["a b/1.png", "a/2.png", "a/\n.png", "a/é.JPG", os.fsdecode(b"a/\xff.png"), "a.png"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list_images(tmp_path) == sorted((tmp_path / name for name in names), key=lambda path: path.parts)


def test_pixels_are_counted_from_the_head_alone() -> None:
    encoded = encode(NOISE)
    assert count_pixels(encoded) == count_pixels(encoded[:60]) == 2000
    assert count_pixels(b"no image") == count_pixels(b"") == 0
