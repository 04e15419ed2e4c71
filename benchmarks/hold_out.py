"""A split of training images alone, by which settings are chosen without a look at the test images.

    python -m benchmarks.hold_out --data FOLDER --out FOLDER [--each 500] [--seed 0]

Of each class in `FOLDER/train`, `--each` images drawn at random become the queries of the new folder (`test`) and the
others its training images and gallery (`train`). The files are hard links; nothing is copied.
"""

import argparse
import os
import random
from pathlib import Path


def link_split(source: Path, target: Path, each: int, seed: int) -> None:
    """Links the images of a folder of classes into `target/train` and `target/test`.

    Raises:
        ValueError: a class has no more than `each` images.
    """
    generator = random.Random(seed)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        if len(images) <= each:
            raise ValueError(f"{folder} has {len(images)} images, more than {each} are needed")
        held_out = set(generator.sample(images, each))
        for image in images:
            place = target / ("test" if image in held_out else "train") / folder.name
            place.mkdir(parents=True, exist_ok=True)
            os.link(image, place / image.name)


def main() -> None:
    """Makes the split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each", type=int, default=500, help="held-out images of each class (500)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    link_split(options.data / "train", options.out, options.each, options.seed)


if __name__ == "__main__":
    main()
