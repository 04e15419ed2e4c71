"""Images below an address, with fsspec's file systems in memory and on disk."""

import sys
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from indistill.data.specs import locate_data, open_images
from indistill.data.urls import UrlSet, join_url
from indistill.errors import DataError
from indistill.images import SkippedImage
from tests.miniatures import encode, make_noise

fsspec = pytest.importorskip("fsspec")


def put(files: dict[str, bytes]) -> str:
    """Writes files in memory, and returns the address of their folder."""
    folder = f"/{uuid4().hex}"
    memory = fsspec.filesystem("memory")
    for name, content in files.items():
        memory.pipe_file(f"{folder}/{name}", content)
    return f"memory:/{folder}"


@pytest.fixture
def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encode(make_noise(rng, 8, 8), "PNG") for _ in range(3)]


@pytest.mark.parametrize("end", ["", "/"])
def test_images_come_in_the_order_of_their_paths_with_their_folders_as_classes(pictures: list[bytes], end: str) -> None:
    files = {"dog/2.PNG": pictures[2], "cat/1.png": pictures[1], "cat/a/0.png": pictures[0]}
    url = put(files | {"cat/notes.txt": b"", "cat/.hidden.png": b""})
    images = open_images(url + end)
    assert images.names == ["cat/1.png", "cat/a/0.png", "dog/2.PNG"]
    assert (images.classes, images.labels.tolist()) == (("cat", "dog"), [0, 0, 1])
    assert images.root == url
    assert [images.fetch(i).content for i in range(3)] == [files[name] for name in images.names]
    assert images.fetch(0).modified_ns > 1e18
    assert images.read(2).size == (8, 8)


def test_an_image_outside_of_the_folders_leaves_no_classes(pictures: list[bytes]) -> None:
    images = open_images(put({"dog/2.png": pictures[2], "1.png": pictures[1]}))
    assert (images.classes, images.labels.tolist()) == ((), [-1, -1])


def test_an_address_of_this_disk_gives_what_its_path_does(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "ein Ordner").mkdir()
    for number, picture in enumerate(pictures):
        (tmp_path / "ein Ordner" / f"{number}.png").write_bytes(picture)
    by_path, by_url = open_images(str(tmp_path)), open_images(f"file://{tmp_path}")
    assert by_url.names == by_path.names
    assert by_url.classes == by_path.classes
    assert by_url.fetch(1).content == by_path.fetch(1).content
    assert abs(by_url.fetch(1).modified_ns - by_path.fetch(1).modified_ns) < 1000  # it is a float there


def test_what_is_gone_when_it_is_read_is_skipped(pictures: list[bytes]) -> None:
    from indistill.data.pixels import read_blocks
    from indistill.preprocess import Preprocessing

    url = put({"1.png": pictures[1], "2.png": pictures[2]})
    images = open_images(url)
    fsspec.filesystem("memory").rm(url.removeprefix("memory:/") + "/1.png")
    (block,) = read_blocks(images, Preprocessing(8))
    assert [image.name for image in block.skipped] == ["1.png"]
    assert isinstance(block.skipped[0], SkippedImage)
    assert list(block.names) == ["2.png"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("memory://nothing/here", "there are no images"),
        ("file:///no/such/folder", "there are no images"),
        ("nonsense://bucket/photos", "Protocol not known: nonsense"),
        ("memory://bucket/train.csv", "not manifests or tar shards"),
        ("memory://bucket/{00..03}.tar", "not manifests or tar shards"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(spec: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_images(spec)


def test_splits_are_no_classes(pictures: list[bytes]) -> None:
    url = put({"train/1.png": pictures[1], "test/2.png": pictures[2]})
    with pytest.raises(DataError, match=f"{url} holds the splits test, train: name one, as in {url}/test"):
        open_images(url)


def test_a_folder_without_a_name_is_refused(pictures: list[bytes]) -> None:
    url = put({"cat/1.png": pictures[1]})
    folder = url.removeprefix("memory:/")
    fsspec.filesystem("memory").store[f"{folder}//a.png"] = fsspec.filesystem("memory").store[f"{folder}/cat/1.png"]
    with pytest.raises(DataError, match=rf"{url}//a\.png lies in a folder without a name: move it"):
        open_images(url)


def test_the_size_of_each_is_listed(pictures: list[bytes]) -> None:
    images = open_images(put({"1.png": pictures[1], "2.png": pictures[2]}))
    assert isinstance(images, UrlSet)
    assert images.sizes == [len(pictures[1]), len(pictures[2])]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "Connection refused"),
        TypeError("missing host"),
        NotImplementedError("no listing"),
        IsADirectoryError(21, "Is a directory"),
        LookupError("Unable to locate credentials"),
        TimeoutError(),
    ],
)
@pytest.mark.parametrize("method", ["__init__", "_ls", "cat_file"])
def test_an_error_of_a_file_system_is_one_line(pictures: list[bytes], error: Exception, method: str) -> None:
    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol, cachable = "broken", False

        def __init__(self) -> None:
            super().__init__()
            self.fail("__init__")

        def fail(self, name: str) -> None:
            if name == method:
                raise error

        def ls(self, path: str, detail: bool = True) -> list[dict[str, object]]:
            self.fail("_ls")
            return [{"name": f"{path}/1.png", "size": 3, "type": "file"}]

        def cat_file(self, path: str, **_: object) -> bytes:
            self.fail("cat_file")
            raise AssertionError(path)

    fsspec.register_implementation("broken", Broken, clobber=True)
    with pytest.raises(DataError, match=r"cannot be (read|listed|fetched)") as caught:
        open_images("broken://bucket").fetch(0)
    assert (str(error) or type(error).__name__) in str(caught.value)


@pytest.mark.parametrize("module", ["fsspec.core", "s3fs"])
def test_without_its_package_an_address_says_what_to_install(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    expected = r"pip install 'indistill\[urls\]'" if module == "fsspec.core" else "Install s3fs"
    with pytest.raises(DataError, match=expected):
        open_images("s3://bucket/photos")


def test_addresses_stay_as_they_are() -> None:
    assert locate_data("s3://bucket/{00..03}.tar") == "s3://bucket/{00..03}.tar"
    assert join_url(Path("s3://bucket/photos"), "cat/1.png") == "s3://bucket/photos/cat/1.png"
    assert join_url(Path("file:///data/photos"), "cat/1.png") == "file:///data/photos/cat/1.png"
    assert join_url(Path("/data/photos"), "cat/1.png") == "/data/photos/cat/1.png"
    assert join_url(Path("/data"), "/else/a.png") == "/else/a.png"
