"""Data specs and the image sets that they name. Needs no torch, but for torchvision's readers."""

from pathlib import Path

from indistill.data.huggingface import is_saved_dataset, open_saved_dataset
from indistill.data.manifests import SUFFIXES, find_metadata, open_manifest
from indistill.data.named import SPLITS, open_named
from indistill.data.sets import ImageSet, open_folder
from indistill.data.shards import is_shard_folder, is_shard_pattern, open_shards
from indistill.data.urls import is_url, open_url
from indistill.errors import DataError, suggest_nearest


def locate_data(spec: str) -> str:
    """Returns a data spec that means the same from any folder."""
    is_path = Path(spec).exists() or (is_shard_pattern(spec) and not is_url(spec))
    return str(Path(spec).resolve()) if is_path else spec


def open_images(spec: str, *, root: Path | None = None, download: bool = False) -> ImageSet:
    """Returns the image set that a data spec names; docs/data.md lists the forms. What exists goes before a name.

    Args:
        spec: the data spec.
        root: where the data sets that have a name lie; default `~/.cache/indistill`.
        download: whether a data set that is not there may be fetched or unpacked.

    Raises:
        DataError: the spec names nothing, or what cannot be read.
    """
    check_data_spec(spec)
    path = Path(spec)
    if path.exists():
        return _open_path(path, spec)
    if is_url(spec):
        return open_url(spec)
    if is_shard_pattern(spec):
        return open_shards(spec)
    return open_named(spec, root or Path("~/.cache/indistill").expanduser(), download=download)


def check_data_spec(spec: str) -> None:
    """Raises DataError if a data spec names neither what exists nor a data set; nothing is read."""
    if Path(spec).exists() or is_url(spec) or is_shard_pattern(spec):
        return
    name, _, split = spec.partition("/")
    if name not in SPLITS:
        raise DataError(
            f"data '{spec}': there is no such file or folder, and no data set of this name ({', '.join(SPLITS)})."
            + suggest_nearest(name, SPLITS)
        )
    if split not in SPLITS[name]:
        accepted = ", ".join(f"{name}/{known}" if known else name for known in SPLITS[name])
        raise DataError(f"data '{spec}': {name} has no split '{split}'; use {accepted}")


def _open_path(path: Path, spec: str) -> ImageSet:
    if path.is_file() and path.suffix in SUFFIXES:
        return open_manifest(path, spec)
    if path.suffix == ".tar" or is_shard_folder(path):
        return open_shards(spec)
    if is_saved_dataset(path):
        return open_saved_dataset(path, spec)
    metadata = find_metadata(path)
    return open_folder(path, spec) if metadata is None else open_manifest(metadata, spec)
