"""Signal 9 at random moments of what changes an index: is the old state there, or the new one, whole?

python -m benchmarks.index_kills --kills 200

Each round writes random images into a gallery, starts one of `build`, `add`, `remove`, `sync` and `compact` in a
process of its own, kills that after a random time, opens and verifies the index, and gives the command again. Counts
what was found: `old` and `new` states, `ended` before the kill, and `broken`, `lost` or `not completed by the next
try`, of which there must be none.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from indistill.data.sets import open_folder
from indistill.errors import IndistillError
from indistill.export.session import EmbeddingSession
from indistill.progress import show_progress
from indistill.retrieval.index import Index
from indistill.retrieval.store.build import BuildOptions, build_index
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, verify_index

COMMANDS = ("build", "add", "remove", "sync", "compact")
LONGEST_S = 0.25
State = dict[str, str]


def act(command: str, index: Path, gallery: Path, model: Path, names: tuple[str, ...]) -> None:
    if command == "build":
        build_index(open_folder(gallery, "g"), EmbeddingSession(model, 1), index, BuildOptions(overwrite=True))
    elif command == "add":
        add_images(index, [str(gallery / name) for name in names])
    elif command == "remove":
        remove_items(index, Selection(paths=names))
    elif command == "sync":
        sync_folder(index)
    else:
        compact_index(index)


def read_state(index: Path) -> State:
    with Index(index) as opened:
        return {item.path: item.sha256 for item in opened.catalogue.list_items()}


def draw_picture(source: random.Random) -> bytes:
    pixels = np.frombuffer(source.randbytes(48), dtype=np.uint8).reshape(4, 4, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((32, 32)).save(stream, format="PNG")
    return stream.getvalue()


def expect(command: str, old: State, disk: State, names: tuple[str, ...]) -> State:
    if command in ("build", "sync"):
        return disk
    if command == "add":
        return old | {name: disk[name] for name in names}
    if command == "remove":
        return {name: content for name, content in old.items() if name not in names}
    return old


def run_round(command: str, folder: Path, model: Path, source: random.Random, counts: Counter[str]) -> None:
    gallery, index = folder / "gallery", folder / "index"
    for _ in range(6):
        path = gallery / "abc"[source.randrange(3)] / f"{source.randrange(40):02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw_picture(source))
    files = {str(path.relative_to(gallery)): path for path in sorted(gallery.rglob("*.png"))}
    disk = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    old = read_state(index)
    pool = sorted(old if command == "remove" else disk)
    names = tuple(source.sample(pool, min(4, max(1, len(pool) - 1)))) if command in ("add", "remove") else ()
    new = expect(command, old, disk, names)
    process = multiprocessing.get_context("forkserver").Process(
        target=act, args=(command, index, gallery, model, names)
    )
    process.start()
    time.sleep(source.uniform(0, LONGEST_S))
    ended = not process.is_alive()
    process.kill()
    process.join()
    counts["ended" if ended else "killed"] += 1
    try:
        found = read_state(index)
        whole = not verify_index(index).problems
    except IndistillError:
        found, whole = {}, False
    counts["broken"] += not whole
    counts["lost"] += whole and found not in (old, new)
    counts["new" if found == new != old else "old"] += 1
    if found == old != new:
        act(command, index, gallery, model, names)
    counts["not completed by the next try"] += read_state(index) != new


def make_model(folder: Path) -> Path:
    import torch

    from indistill.export.onnx import export_onnx
    from indistill.models.loading import load_network
    from indistill.preprocess import Preprocessing

    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    export_onnx(load_network("paper:cnn-s"), Preprocessing(32), pixels, folder / "model.onnx")
    return folder / "model.onnx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source, totals = random.Random(options.seed), {command: Counter[str]() for command in COMMANDS}
    multiprocessing.get_context("forkserver").set_forkserver_preload(["indistill.retrieval.store.upkeep"])
    folder = Path(tempfile.mkdtemp(prefix="index-kills-"))
    try:
        model = make_model(folder)
        (folder / "gallery" / "a").mkdir(parents=True)
        for number in range(10):
            (folder / "gallery" / "a" / f"{number:02d}.png").write_bytes(draw_picture(source))
        act("build", folder / "index", folder / "gallery", model, ())
        kills = 0
        with show_progress("killing", options.kills, "kills") as advance:
            while kills < options.kills:
                command = source.choice(COMMANDS)
                before = totals[command]["killed"]
                run_round(command, folder, model, source, totals[command])
                advance(totals[command]["killed"] - before)
                kills += totals[command]["killed"] - before
    finally:
        shutil.rmtree(folder)
    print(json.dumps({name: dict(counts) for name, counts in totals.items()}, indent=2))


if __name__ == "__main__":
    main()
