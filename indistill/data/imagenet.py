"""ImageNet (ILSVRC 2012) from a folder for each class, named by WordNet id, as torchvision unpacks it. Needs no torch.

The classes are the WordNet ids in both layouts, with torchvision's `meta.bin` or without, so that the same image has
the same class whoever unpacked it. The archives are unpacked by torchvision, which needs the devkit for `val`.
"""

from pathlib import Path

from indistill.data.sets import FolderSet, open_folder
from indistill.errors import DataError

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SOURCE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


def open_imagenet(spec: str, split: str, root: Path, *, unpack: bool) -> FolderSet:
    """Returns the images of ROOT/imagenet/SPLIT, or of ROOT/SPLIT where there is no folder ROOT/imagenet.

    Args:
        spec: the data spec.
        split: `train` or `val`.
        root: the data root.
        unpack: whether torchvision may unpack the archives there, if the folder of the split is missing.

    Raises:
        DataError: the folder or an archive is missing or damaged, or images lie outside the folders of classes.
    """
    folder = root / "imagenet" if (root / "imagenet").is_dir() else root
    if not (folder / split).is_dir():
        _unpack(spec, split, folder, allowed=unpack)
    images = open_folder(folder / split, spec)
    if not images.classes:
        raise DataError(
            f"data '{spec}': {folder / split} holds images outside of folders for each class (n01440764, ...)"
        )
    return images


def _unpack(spec: str, split: str, folder: Path, *, allowed: bool) -> None:
    needed = [ARCHIVES[split], DEVKIT]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"data '{spec}': there is no {folder / split}: put a folder for each class (n01440764, ...) there, or "
            f"{' and '.join(missing)} of {SOURCE} into {folder}, which --download unpacks"
        )
    if not allowed:
        raise DataError(
            f"data '{spec}': there is no {folder / split}, but {' and '.join(needed)}: --download unpacks them"
        )
    from torchvision.datasets import ImageNet

    try:
        ImageNet(str(folder), split=split)
    except (RuntimeError, OSError) as error:
        raise DataError(f"data '{spec}': torchvision cannot unpack {folder / ARCHIVES[split]} ({error})") from error
