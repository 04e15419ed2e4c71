"""Damaged images: every file is embedded or skipped with a reason, none ends the process or holds it up.

    python -m benchmarks.mutated_images [--count 10000] [--seed 0] [--keep FOLDER] [--build] [--photos FOLDER]

Small images of every format and many modes, or the images of a folder, are changed: bytes and bits flipped, cut off,
spliced with one another, stretches removed, repeated or zeroed. They go through `embed_files` in blocks of 500 files,
each block in a process of its own, so that a crash is one too, and each file is embedded alone as well. With --build
all go through one `indistill index build`, as a user gives it. What fails is kept in a folder.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from PIL import Image

from indistill.data.sets import open_folder
from indistill.errors import DataError
from indistill.export.session import Embeddings, EmbeddingSession
from indistill.images import list_images
from indistill.retrieval.embed import embed_files
from indistill.retrieval.index import Index
from indistill.retrieval.store.generations import SKIPPED, name_generation, read_manifest
from indistill.retrieval.store.upkeep import verify_index

BLOCK, BLOCK_LIMIT_S, BUILD_LIMIT_S = 500, 600, 3600
HEADER_BYTES = 64  # a sixth of the changes fall in here, where sizes and formats stand


@dataclass(frozen=True)
class Outcome:
    """What became of files: numbers, the reasons without their details, the slowest in seconds where each is timed."""

    embedded: int
    skipped: int
    reasons: dict[str, int]
    slowest_s: float | None


def make_originals() -> list[tuple[str, bytes]]:
    """Returns suffix and content of small images in all formats that are read."""
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((6, 6, 1), dtype=np.uint8))
    image, grey = Image.fromarray(noise), Image.fromarray(noise[:, :, 0])
    deep = Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    originals: list[tuple[str, bytes]] = []

    def add(picture: Image.Image, kind: str, suffix: str, **options: object) -> None:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        originals.append((suffix, stream.getvalue()))

    add(image, "JPEG", "jpg")
    add(image, "JPEG", "jpg", progressive=True, exif=exif)
    add(image.convert("CMYK"), "JPEG", "jpeg")
    add(grey, "JPEG", "jpg", optimize=True)
    add(image, "PNG", "png", exif=exif)
    add(image.convert("RGBA"), "PNG", "png")
    add(image.quantize(16), "PNG", "png", transparency=3)
    add(deep, "PNG", "png", transparency=257)
    add(image.convert("1"), "PNG", "png")
    add(image, "GIF", "gif", save_all=True, append_images=[image.rotate(90), grey])
    add(image, "WEBP", "webp", lossless=True)
    add(image.convert("RGBA"), "WEBP", "webp", save_all=True, append_images=[image.rotate(90).convert("RGBA")])
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        add(image, "TIFF", "tif", compression=compression)
    add(deep, "TIFF", "tiff")
    add(Image.fromarray(noise[:, :, 0].astype(np.float32)), "TIFF", "tif", compression="tiff_lzw")
    add(image.convert("CMYK"), "TIFF", "tif")
    add(image, "BMP", "bmp")
    add(image.quantize(16), "BMP", "bmp")
    add(image, "PPM", "ppm")
    add(deep, "PPM", "pgm")
    return originals


def read_originals(folder: Path) -> list[tuple[str, bytes]]:
    """Returns suffix and content of the images of a folder."""
    return [(path.suffix.removeprefix("."), path.read_bytes()) for path in list_images(folder)]


def mutate_images(
    count: int, seed: int, originals: Sequence[tuple[str, bytes]] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yields suffix and content of changed images, the same for the same seed; default of those of `make_originals`."""
    rng, originals = np.random.default_rng(seed), originals or make_originals()
    for _ in range(count):
        suffix, content = originals[rng.integers(len(originals))]
        changed = bytearray(content)
        for _ in range(rng.integers(1, 3)):
            changed = _change(changed, originals[rng.integers(len(originals))][1], rng)
        yield suffix, bytes(changed)


def _change(content: bytearray, other: bytes, rng: np.random.Generator) -> bytearray:
    """Returns an image changed in one of seven ways."""
    if not content:
        return content
    in_header = rng.random() < 1 / 6
    places = rng.integers(0, min(len(content), HEADER_BYTES) if in_header else len(content), 8).tolist()
    first, last = sorted(places[:2])
    match rng.integers(7):
        case 0:
            for place in places[: rng.integers(1, 9)]:
                content[place] = rng.integers(256)
        case 1:
            for place in places[: rng.integers(1, 9)]:
                content[place] ^= 1 << int(rng.integers(8))
        case 2:
            del content[places[0] :]
        case 3:
            content[places[0] :] = other[int(rng.integers(len(other))) :]
        case 4:
            del content[first:last]
        case 5:
            content[last:last] = content[first:last]
        case _:
            content[first:last] = bytes([int(rng.choice((0, 255)))]) * (last - first)
    return content


def write_images(folder: Path, count: int, seed: int, originals: Sequence[tuple[str, bytes]] | None = None) -> None:
    """Writes changed images into a folder."""
    folder.mkdir()
    for number, (suffix, content) in enumerate(mutate_images(count, seed, originals)):
        (folder / f"{number:05d}.{suffix}").write_bytes(content)


def check_images(folder: Path, session: EmbeddingSession) -> Outcome:
    """Returns what became of the images of a folder.

    Raises:
        AssertionError: one is missing, or is embedded and skipped, or has another vector or reason than alone.
    """
    images = open_folder(folder, "mutated")
    assert len(images.names) == len(list(folder.iterdir()))
    embedded = embed_files(images, session)
    skipped = {image.name: image.reason for image in embedded.skipped}
    rows = {file.name: row for file, row in zip(embedded.files, embedded.vectors, strict=True)}
    assert sorted([*rows, *skipped]) == list(images.names)
    assert len(rows) + len(skipped) == len(images.names)
    slowest_s = 0.0
    for name in images.names:
        started = perf_counter()
        vector, reason = _embed_alone(folder / name, session)
        if vector is None:
            assert skipped[name] == reason, name
        else:
            assert np.allclose(vector, rows[name], atol=1e-5), name
            assert abs(np.linalg.norm(vector) - 1) < 1e-4, name
        slowest_s = max(slowest_s, perf_counter() - started)
    return Outcome(len(rows), len(skipped), _count_reasons(skipped.values()), slowest_s)


def check_build(folder: Path, model: Path, index: Path, limit_s: float = BUILD_LIMIT_S) -> Outcome:
    """Returns what became of the images of a folder in `indistill index build`, a process of its own.

    Raises:
        AssertionError: it did not end well, or in time, or the index is damaged; an image is missing, or is both in the
            catalogue and skipped, or is skipped without a reason.
    """
    command = [sys.executable, "-m", "indistill.cli.main", "index", "build", str(folder), "-m", str(model)]
    try:
        done = subprocess.run(
            [*command, "-o", str(index), "--json"], capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"not done after {limit_s:g} s") from error
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    assert "Traceback" not in done.stderr, done.stderr
    assert verify_index(index).problems == ()
    manifest = read_manifest(index)
    with Index(index) as opened:
        indexed = [item.path for item in opened.catalogue.list_items()]
    lines = (name_generation(index, manifest.generation) / SKIPPED).read_text(encoding="utf-8").splitlines()
    skipped = {line["name"]: line["reason"] for line in map(json.loads, lines)}
    files = sorted(path.name for path in folder.iterdir())
    assert sorted([*indexed, *skipped]) == files
    assert len(lines) == len(skipped) == manifest.skipped
    assert len(indexed) == manifest.items
    assert all(reason.strip() and "\n" not in reason for reason in skipped.values())
    return Outcome(len(indexed), len(skipped), _count_reasons(skipped.values()), None)


def _count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reason.partition("(")[0].strip().lstrip("0123456789,x ") for reason in reasons))


def _embed_alone(path: Path, session: EmbeddingSession) -> tuple[Embeddings | None, str]:
    """Returns the vector (D,) of an image, or the reason why there is none."""
    try:
        return session.embed_images([path.read_bytes()])[0], ""
    except DataError as error:
        return None, str(error)


def write_model(path: Path) -> None:
    """Exports a small network with random weights."""
    import torch

    from indistill.export.onnx import export_onnx
    from indistill.models.loading import load_network
    from indistill.preprocess import Preprocessing

    torch.manual_seed(0)
    example = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), example, path)


def run_block(folder: Path, model: Path) -> Outcome | str:
    """Returns what became of a block in a process of its own, or how that ended."""
    command = [sys.executable, "-m", "benchmarks.mutated_images", "--block", str(folder), "--model", str(model)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BLOCK_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {BLOCK_LIMIT_S} s"
    if done.returncode != 0:
        return f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    return Outcome(**json.loads(done.stdout))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many images (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (0)")
    parser.add_argument("--keep", type=Path, default=Path("mutated"), help="where failing blocks are kept (mutated)")
    parser.add_argument("--build", action="store_true", help="through one 'indistill index build'")
    parser.add_argument("--photos", type=Path, help="a folder whose images are changed in place of small ones")
    parser.add_argument("--block", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_blocks(options: argparse.Namespace, scratch: Path, model: Path) -> tuple[list[Outcome], int]:
    """Returns what became of each block that ended well, and how many did not."""
    outcomes: list[Outcome] = []
    failed = 0
    originals = options.photos and read_originals(options.photos)
    for number, start in enumerate(range(0, options.count, BLOCK)):
        folder = scratch / f"block-{number:04d}"
        write_images(folder, min(BLOCK, options.count - start), options.seed + number, originals)
        outcome = run_block(folder, model)
        if isinstance(outcome, str):
            failed += 1
            keep_images(folder, options.keep, outcome)
        else:
            outcomes.append(outcome)
        shutil.rmtree(folder)
    return outcomes, failed


def run_build(options: argparse.Namespace, scratch: Path, model: Path) -> tuple[list[Outcome], int]:
    """Returns what became of the images of one build, or nothing and that it failed."""
    folder = scratch / "images"
    write_images(folder, options.count, options.seed, options.photos and read_originals(options.photos))
    started = perf_counter()
    try:
        outcome = check_build(folder, model, scratch / "index")
    except AssertionError as error:
        keep_images(folder, options.keep, str(error))
        return [], 1
    print(f"indistill index build: {perf_counter() - started:.0f} s")
    return [outcome], 0


def keep_images(folder: Path, keep: Path, reason: str) -> None:
    """Copies images to where they can be looked at, and says why."""
    shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
    print(f"{keep / folder.name}: {reason}")


def main() -> None:
    options = parse_arguments()
    if options.block is not None:
        print(json.dumps(asdict(check_images(options.block, EmbeddingSession(options.model)))))
        return
    with TemporaryDirectory() as scratch:
        model = Path(scratch) / "student.onnx"
        write_model(model)
        outcomes, failed = (run_build if options.build else run_blocks)(options, Path(scratch), model)
    embedded, skipped = sum(outcome.embedded for outcome in outcomes), sum(outcome.skipped for outcome in outcomes)
    what = "builds" if options.build else "blocks"
    print(f"{options.count:,} changed images: {embedded:,} embedded, {skipped:,} skipped, {failed} {what} failed")
    times = [outcome.slowest_s for outcome in outcomes if outcome.slowest_s is not None]
    if times:
        print(f"slowest image: {max(times):.2f} s")
    reasons = sum((Counter(outcome.reasons) for outcome in outcomes), Counter[str]())
    for reason, count in reasons.most_common():
        print(f"{count:7,} {reason}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
