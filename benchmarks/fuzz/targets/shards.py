"""Tar shards: members that lead out, links, devices, holes, enormous sizes, keys twice, headers changed."""

import io
import random
import tarfile
from pathlib import Path

from benchmarks.fuzz.damage import ODD_TEXTS, damage, require_line
from benchmarks.fuzz.originals import provide
from indistill.data.specs import open_images
from indistill.errors import DataError

NAMES = (
    "../x.png",
    "/x.png",
    "a/../../x.png",
    "a\\x.png",
    "x" * 300 + ".png",
    "part/000.png",
    ".png",
    "./000.cls",
    "a//b.png",
)


def prepare() -> None:
    """Makes the shard that is damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Opens a shard and reads each image of it; nothing else may appear or be read."""
    path = folder / "shard.tar"
    original = provide("shard.tar").read_bytes()
    path.write_bytes(damage(original, random) if random.random() < 0.4 else _rewrite(original, random))
    if random.random() < 0.2:
        with path.open("r+b") as stream:
            stream.truncate(random.choice((2**40, 10**6)))  # a hole at the end
    try:
        images = open_images(str(path))
        for position in range(len(images.names)):
            try:
                images.read(position)
                assert len(images.fetch(position).content) <= path.stat().st_size
            except DataError as error:
                require_line(error)
    finally:
        assert list(folder.iterdir()) == [path]


def _rewrite(original: bytes, generator: random.Random) -> bytes:
    """Returns a shard in which some members are others."""
    stream = io.BytesIO()
    formats = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
    with (
        tarfile.open(fileobj=io.BytesIO(original)) as old,
        tarfile.open(fileobj=stream, mode="w", format=generator.choice(formats)) as new,
    ):
        for info in old:
            content = old.extractfile(info).read()  # type: ignore[union-attr]
            if generator.random() < 0.3:
                content = _change_member(info, content, generator)
            try:
                new.addfile(info, io.BytesIO(content))
            except (ValueError, UnicodeError, tarfile.TarError, OSError):
                continue
    made = bytearray(stream.getvalue())
    if generator.random() < 0.3:  # a size as a number of base 256, with a checksum that fits
        made[124:136] = b"\x80" + generator.choice((2**62, 2**80, 2**31)).to_bytes(11, "big")
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made[:512])
    return bytes(made)


def _change_member(info: tarfile.TarInfo, content: bytes, generator: random.Random) -> bytes:
    match generator.randrange(6):
        case 0:
            info.name = generator.choice((*NAMES, *ODD_TEXTS))
        case 1:
            kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
            info.type, info.linkname = generator.choice(kinds), generator.choice(("/etc/passwd", "../x", info.name))
            info.size = 0
        case 2:
            headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**60)}
            headers |= {"size": generator.choice(("-1", "1" * 5000, "9" * 18, "x")), "path": generator.choice(NAMES)}
            info.pax_headers = {name: headers[name] for name in generator.sample(sorted(headers), 2)}
        case 3:
            info.type = tarfile.GNUTYPE_SPARSE
        case 4:
            content = damage(content, generator)
            info.size = len(content)
        case _:
            content = generator.choice(
                (b"", b"[" * 10**5, b"\xff", b'{"label": {}}', b"1" * 5000, b"NaN", bytes(2**20 + 1))
            )
            info.size = len(content)
    return content
