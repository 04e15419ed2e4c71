"""Files from strangers: bombs, pickles that execute, headers that lie, names that lead out; each is one clear line."""

import io
import json
import pickle
import re
import resource
import socket
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from indistill.data.specs import open_images
from indistill.errors import DataError, InputError, ModelError
from indistill.files.hashing import hash_file
from indistill.images import FORMATS, decode_image, list_images
from indistill.models.weights import read_weights
from indistill.training.checkpoint import Checkpoints
from tests.miniatures import write_shard

ROOT = Path(__file__).parents[2]
SIDE = 60_000  # 3.6 thousand million pixels, more than 10 GB


def write_png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def write_tiff(width: int, height: int, compression: int = 8) -> bytes:
    data = zlib.compress(bytes(10**6))
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 200, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return start.ljust(200, b"\0") + data


def write_gif(width: int, height: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def write_webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def write_jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    content = stream.getvalue()
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


BOMBS = {
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": write_gif(SIDE, SIDE),
    "JPEG": write_jpeg(SIDE, SIDE),
    "PNG": write_png(SIDE, SIDE),
    "PPM": b"P6 %d %d 255\n" % (SIDE, SIDE),
    "TIFF": write_tiff(SIDE, SIDE),
    "WEBP": write_webp(16_384, 16_384),
}


@contextmanager
def limit_memory(size: int = 256 * 2**20) -> Iterator[None]:
    """A context in which Python takes no more memory than so many bytes more, nor does the process have taken it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < size
    finally:
        tracemalloc.stop()


def test_there_is_a_bomb_of_every_format_that_is_read() -> None:
    assert set(BOMBS) == set(FORMATS)


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_decompression_bomb_of_any_format_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bomb.png").write_bytes(content)
    for source in (content, tmp_path / "bomb.png"):
        with limit_memory(), pytest.raises(DataError, match=r"pixels than the limit|damaged image") as refused:
            decode_image(source)
        assert len(str(refused.value).splitlines()) == 1


TEXT_BOMB = b"Comment\0\0" + zlib.compress(bytes(2 * 10**8))
PACKED = {
    "a text in PNG": write_png(4, 4, (b"zTXt", TEXT_BOMB)),
    "a profile in PNG": write_png(4, 4, (b"iCCP", TEXT_BOMB)),
    "a translated text in PNG": write_png(4, 4, (b"iTXt", b"C\0\1\0\0\0" + zlib.compress(bytes(2 * 10**8)))),
    "a hundred texts in PNG": write_png(4, 4, *[(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**6)))] * 100),
}


@pytest.mark.parametrize("content", PACKED.values(), ids=PACKED)
def test_a_bomb_beside_the_pixels_takes_no_memory(content: bytes) -> None:
    with limit_memory(), suppress(DataError):
        decode_image(content)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_formats_that_are_not_needed_are_off(tmp_path: Path) -> None:
    """Pillow itself would read them; in none of ours is a program that may be started, as Ghostscript for EPS."""
    Image.init()
    image, off = Image.new("RGB", (8, 8)), sorted(set(Image.SAVE) - set(FORMATS))
    written = {}
    for kind in off:
        stream = io.BytesIO()
        try:
            image.save(stream, kind)
            Image.open(io.BytesIO(stream.getvalue()))
        except (OSError, ValueError, KeyError, RuntimeError):
            continue
        written[kind] = stream.getvalue()
    assert {"EPS", "ICO", "TGA", "PCX"} <= set(written)
    for kind, content in written.items():
        if kind in ("MPO", "JPEG2000", "DIB"):  # MPO is JPEG
            continue
        (tmp_path / "image.png").write_bytes(content)
        with pytest.raises(DataError, match="not an image that Pillow can read"):
            decode_image(tmp_path / "image.png")


def test_images_are_opened_in_one_place_alone() -> None:
    opening = re.compile(r"\bImage\.open\(|\bImageFolder\(|default_loader|\bread_image\(|\bcv2\b|\bimageio\b")
    paths = {path for folder in ("indistill", "export", "retrieval", "cli") for path in (ROOT / folder).rglob("*.py")}
    files = {path.resolve() for path in paths}
    found = {path.relative_to(ROOT).as_posix() for path in files if opening.search(path.read_text(encoding="utf-8"))}
    assert found == {"indistill/images.py", "export/card.py"}  # the card shows code to others
    assert "Image.open(stream, formats=FORMATS)" in (ROOT / "indistill" / "images.py").read_text(encoding="utf-8")


class Trap:
    """When it is unpickled by plain pickle, a file appears."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


CHECKPOINTS: dict[str, Callable[[Path, Trap], object]] = {
    "a pickle": lambda path, trap: path.write_bytes(pickle.dumps({"format": 2, "student": trap})),
    "an archive": lambda path, trap: torch.save({"format": 2, "student": trap}, path),
    "tensors alone": lambda path, trap: torch.save({"format": 2, "student": {}}, path),
    "a list": lambda path, trap: torch.save([1], path),
    "text": lambda path, trap: path.write_text("text"),
    "nothing": lambda path, trap: path.write_bytes(b""),
}


@pytest.mark.parametrize("write", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_is_none_is_refused_and_not_run(tmp_path: Path, write) -> None:
    trap, folder = Trap(tmp_path / "executed"), tmp_path / "checkpoint"
    folder.mkdir()
    write(folder / "draft", trap)
    (folder / "draft").rename(folder / f"0000000100-{hash_file(folder / 'draft')[:16]}.pt")
    with pytest.raises(InputError, match="is no checkpoint of indistill") as refused:
        Checkpoints(folder, 1).read()
    assert len(str(refused.value).splitlines()) == 1
    assert not trap.path.exists()


def test_the_trap_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_weights_that_are_compressed_are_refused_before_they_grow(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**7)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    (tmp_path / "a.pt").unlink()
    with limit_memory(2**24), pytest.raises(ModelError, match="was not opened"):
        read_weights(tmp_path / "b.pt")


def lie(header: dict[str, object] | str, size: int | None = None) -> Callable[[Path], object]:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return lambda path: path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + bytes(64))


HEADERS: dict[str, Callable[[Path], object]] = {
    "longer than the file": lie("{}", 2**63),
    "of all memory": lie("{}", 2**40),
    "negative": lie("{}", 2**64 - 1),
    "empty": lie("", 0),
    "nested without end": lie("[" * 100_000),
    "a shape beyond all": lie({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 64]}}),
    "a shape larger than its values": lie({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 64]}}),
    "places beyond the file": lie({"a": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}}),
    "places backwards": lie({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}),
    "places that overlap": lie({name: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for name in ("a", "b")}),
    "a hole": lie({"a": {"dtype": "F32", "shape": [1], "data_offsets": [60, 64]}}),
    "an unknown type": lie({"a": {"dtype": "PY", "shape": [16], "data_offsets": [0, 64]}}),
}


@pytest.mark.parametrize("write", HEADERS.values(), ids=HEADERS)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "weights.safetensors"
    write(path)
    with limit_memory(), pytest.raises(ModelError, match="is not a safetensors file") as refused:
        read_weights(path)
    assert len(str(refused.value).splitlines()) == 1
    save_file({"a": torch.zeros(16)}, path)
    assert list(read_weights(path)) == ["a"]


def make_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, *members: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() and info.size < 2**20 else None)


def make_member(name: str, **values: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def claim(path: Path, size: int, kind: bytes = tarfile.REGTYPE) -> None:
    """Writes a member that claims another size than there is, with a hole where its content would be."""
    info = make_member("a.png", size=size, type=kind)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with path.open("r+b") as stream:
        stream.truncate(2**42 if size < 2**42 else 2048)


SHARDS: dict[str, Callable[[Path], object]] = {
    "a size beyond the file": lambda path: claim(path, 2**60),
    "a header of gigabytes": lambda path: claim(path, 2**35, tarfile.XHDTYPE),
    "a name of gigabytes": lambda path: claim(path, 2**35, tarfile.GNUTYPE_LONGNAME),
    "brackets for a label": lambda path: write_shard(path, {"a.png": make_png(), "a.json": b"[" * 100_000}),
    "a number of a megabyte for a label": lambda path: write_shard(path, {"a.png": make_png(), "a.json": b"1" * 10**6}),
    "a link for an image": lambda path: write_tar(
        path, make_member("a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    ),
    "a hard link for an image": lambda path: write_tar(
        path, make_member("a.png", type=tarfile.LNKTYPE, linkname="../x")
    ),
    "a device for an image": lambda path: write_tar(path, make_member("a.png", type=tarfile.CHRTYPE)),
    "a name that leads out by its long header": lambda path: write_tar(
        path, make_member("a.png", pax_headers={"path": "../" * 100 + "a.png"}, size=4)
    ),
    "a sparse file": lambda path: write_tar(
        path,
        make_member(
            "a.png", size=4, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b"}
        ),
    ),
}


@pytest.mark.parametrize("write", SHARDS.values(), ids=SHARDS)
def test_a_hostile_shard_is_refused_and_nothing_appears(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "shard.tar"
    write(path)
    with limit_memory(), pytest.raises(DataError, match=r"^shard ") as refused:
        open_images(str(path))
    assert len(str(refused.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_labels_may_be_numbers_of_any_length(tmp_path: Path) -> None:
    labels = [b"1" * 5000, b"10", b"9", b"0", b"00"]
    members = {
        f"{i}.{kind}": part for i, text in enumerate(labels) for kind, part in (("png", make_png()), ("cls", text))
    }
    images = open_images(str(write_shard(tmp_path / "shard.tar", members)))
    assert images.classes == ("0", "00", "9", "10", "1" * 5000)


def test_a_member_larger_than_any_image_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    claim(path, 2**40)
    with path.open("r+b") as stream:
        stream.truncate(2**40 + 512 + 1024)
    images = open_images(str(path))
    with limit_memory(), pytest.raises(DataError, match="1,099,511,627,776 bytes, more than the limit"):
        images.read(0)


BOMB_TABLES = {
    "more rows than bytes": lambda: pa.array(["a.png"] * 1_000_000),
    "a long path in each row": lambda: pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1000, dtype=np.int8)), pa.array(["x" * 1_000_000])
    ),
}


@pytest.mark.parametrize("make", BOMB_TABLES.values(), ids=BOMB_TABLES)
def test_a_table_that_grows_when_it_is_read_is_refused(tmp_path: Path, make: Callable[[], pa.Array]) -> None:
    path = tmp_path / "m.parquet"
    parquet.write_table(pa.table({"path": make()}), path, compression="zstd")
    with limit_memory(2**25), pytest.raises(DataError, match=r"manifest .* rows"):
        open_images(str(path))


def test_a_gallery_of_links_in_circles_devices_and_sockets_ends(tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    (gallery / "a" / "b").mkdir(parents=True)
    (gallery / "a.png").write_bytes(make_png())
    for place, target in {
        "a/b/up": "../..",
        "self": ".",
        "root": "/",
        "a/loop.png": "loop.png",
        "zero.png": "/dev/zero",
    }.items():
        (gallery / place).symlink_to(target)
    (gallery / "passwd.png").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(gallery / "s.png"))
    found = [path.relative_to(gallery).as_posix() for path in list_images(gallery)]
    assert found == ["a/loop.png", "a.png", "passwd.png"]
    images = open_images(str(gallery))
    for name in ("a/loop.png", "passwd.png"):
        with pytest.raises(DataError):
            images.read(list(images.names).index(name))
