"""`indistill plan`."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from indistill.cli.index_type import SIZES, read_unit
from indistill.cli.options import JsonOption
from indistill.errors import InputError

if TYPE_CHECKING:
    from indistill.retrieval.capacity import Need

MOST = 10**12  # images
SAMPLE = 64  # images
PICTURE = (500, 375)  # width and height


def plan(
    images: Annotated[str, typer.Option("--images", "-n", metavar="N", help="Of the gallery, as 1e8.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The exported file that is to embed them.")],
    recall: Annotated[
        float, typer.Option(min=0, max=1, help="Of the ten nearest, the share that a search finds; 1 is exact.")
    ] = 0.95,
    data: Annotated[
        str | None,
        typer.Option(help="Some of the images, to measure with.", show_default="(pictures of 500 x 375, made here)"),
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Of all machines together.", show_default="(this machine's)")
    ] = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of one machine.")] = "64GB",
    json: JsonOption = False,
) -> None:
    """Say what a gallery of N images needs: bytes, core hours, time. Rates are measured here; see docs/scaling.md."""
    from indistill.data.sets import sample_images
    from indistill.data.specs import open_images
    from indistill.export.session import EmbeddingSession
    from indistill.progress import show_progress
    from indistill.retrieval.capacity import choose_code, measure_rates, plan_gallery

    count, memory_bytes = read_count(images), read_unit("--memory", memory, SIZES)
    if not memory_bytes:
        raise InputError(f"--memory {memory}: give more than 0")
    session = EmbeddingSession(model, threads=1)
    dimension, cores = session.artefact.embedding_dim, cores or os.cpu_count() or 1
    code = choose_code(count, dimension, recall)
    with ExitStack() as stack:
        folder = data or str(write_pictures(Path(stack.enter_context(TemporaryDirectory()))))
        sample = sample_images(open_images(folder), SAMPLE)
        advance = stack.enter_context(show_progress("measuring", len(sample.names)))
        rates = measure_rates(session, sample, code, advance)
    made = plan_gallery(count, dimension, recall, rates, cores, memory_bytes)
    if json:
        from indistill.cli.output import print_json

        asked = {
            "images": count,
            "dimension": dimension,
            "recall": recall,
            "cores": cores,
            "memory_bytes": memory_bytes,
        }
        print_json(asked | {"rates": asdict(rates)} | asdict(made))
        return
    from indistill.cli.output import print_table

    rows = [(need.name, format_need(need), need.formula) for need in made.needs]
    print_table((f"{count:,} images, {made.factory}", "needs", "from"), rows)


def read_count(text: str) -> int:
    """Returns a number of images, which may be written as 1e8.

    Raises:
        InputError: it is none.
    """
    try:
        count = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        count = math.nan
    if not 1 <= count <= MOST or count != int(count):
        raise InputError(f"--images {text}: give a whole number of images from 1 to {MOST:.0e}, as 1e8")
    return int(count)


def write_pictures(folder: Path) -> Path:
    """Fills a folder with JPEG files whose size and detail are those of photographs, and returns it."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(SAMPLE):
        layers = [generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (6, 60, 250)]
        coarse, fine, grain = (np.asarray(Image.fromarray(layer).resize(PICTURE), np.float32) for layer in layers)
        mixed = (0.7 * coarse + 0.2 * fine + 0.1 * grain).astype(np.uint8)
        Image.fromarray(mixed).save(folder / f"{i:03}.jpg", quality=92)
    return folder


def format_need(need: "Need") -> str:
    """Returns a value in a unit that suits it, or two."""
    shown = [FORMATS[need.unit](value) for value in (need.least, need.most)]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def format_by(units: Sequence[tuple[str, float]], value: float) -> str:
    """Returns three digits in the largest unit of which there is one at least, else in the smallest."""
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    return f"{float(f'{value / size:.3g}'):,.10g} {name}".rstrip()


FORMATS: dict[str, Callable[[float], str]] = {
    "bytes": partial(format_by, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3))),
    "core-s": partial(format_by, (("core-hours", 3600), ("core-minutes", 60), ("core-seconds", 1))),
    "s": partial(
        format_by, (("years", 86400 * 365), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3))
    ),
    "1/s": lambda value: format_by((("", 1),), value) + "/s",
    "": partial(format_by, (("", 1),)),
}
