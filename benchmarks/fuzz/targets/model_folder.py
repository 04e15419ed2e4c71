"""Model folders: the texts beside the models changed, files swapped, linked and gone."""

import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

from benchmarks.fuzz.damage import damage, damage_json
from benchmarks.fuzz.originals import provide
from indistill.export.folder import (
    CARD_FILE,
    CONFIG_FILE,
    MODEL_NAMES,
    PROCESSOR_FILE,
    check_folder_output,
    read_folder,
)

MAX_BYTES = 10**7
NAMES = (PROCESSOR_FILE, CONFIG_FILE, CARD_FILE, *MODEL_NAMES.values())


def prepare() -> None:
    """Makes the folder that is damaged."""
    provide("")


def attempt(random: random.Random, folder: Path) -> None:
    """Reads a folder of which one or two files are not what they were."""
    packed = folder / "packed"
    shutil.copytree(provide("packed"), packed)
    for name in random.choices(NAMES, k=random.randint(1, 2)):
        with suppress(ValueError):  # of a text that is damaged already
            _change(packed / name, random)
    names = {path.name for path in packed.iterdir()}
    try:
        read_folder(packed).list_sizes()
    finally:
        assert {path.name for path in packed.iterdir()} == names
    check_folder_output(packed, overwrite=True)


def _change(path: Path, generator: random.Random) -> None:
    if not os.path.lexists(path):
        shutil.copyfile(provide("packed") / "model.onnx", path)
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return  # changed already
    match generator.randrange(8):
        case 0:
            path.unlink()
        case 1:
            path.unlink()
            path.symlink_to(generator.choice(("/etc/passwd", "/dev/zero", "..", path.name)))
        case 2:
            path.unlink()
            os.mkfifo(path)
        case 3:
            with path.open("r+b") as stream:
                stream.truncate(generator.choice((0, 2**21, 2**32)))
        case 4 if path.suffix == ".json":
            path.write_text(damage_json(path.read_text(encoding="utf-8"), generator), encoding="utf-8")
        case 5 if path.suffix != ".onnx":
            path.write_text(generator.choice(("[" * 10**5, '{"a":' * 10**5, "---\n" * 10**5, "---\na: &a [*a]\n---\n")))
        case _:
            path.write_bytes(damage(path.read_bytes(), generator))
