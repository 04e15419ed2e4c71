"""A disk without room, a folder that is held or not to be read: one line, the old result stays, and the next try works.

The long version, with kills and signals at random moments, is `python -m benchmarks.faults`.
"""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from indistill.files.hashing import hash_file
from indistill.files.locking import LOCK, hold_lock
from tests.cli.calls import Result, assert_refused, fill, make_environment, run_cli, snapshot, succeed

Places = dict[str, Path]
COMPRESS = (
    "compress --teacher {teacher} --student paper:cnn-s --data digits/train --recipe digits --epochs 5 --out {out}"
)


@contextmanager
def limit_files(size_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_says_once(result: Result, fragment: str) -> None:
    (line,) = [line for line in result.err.splitlines() if "error" in line]
    assert line.startswith("indistill: error: "), result.err
    assert fragment in line
    assert result.code == 2


@pytest.mark.slow
def test_a_run_without_room_is_not_complete_and_resumes_to_the_same_weights(places: Places) -> None:
    with limit_files(40_000):
        assert_says_once(run_cli(*fill(COMPRESS, places)), "cannot be written: File too large")
    assert not (places["out"] / "student.safetensors").exists()
    succeed(*fill(COMPRESS, places), "--resume")
    assert hash_file(places["out"] / "student.safetensors") == hash_file(places["run"] / "student.safetensors")


@pytest.mark.parametrize(
    "line",
    [
        "report {copied_run} --images 40",
        "index add {copied_index} {queries}",
        "index build {queries} --model {model} --out {copied_index} --overwrite",
    ],
    ids=lambda line: " ".join(line.split()[:2]),
)
def test_without_room_the_old_result_stays_and_the_next_try_works(
    places: Places, copy: Callable[[str], Path], line: str
) -> None:
    old = {folder: snapshot(copy(folder)) for folder in ("run", "index")}
    with limit_files(10_000):
        assert_says_once(run_cli(*fill(line, places)), "cannot be written: File too large")
    for folder, files in old.items():
        now = snapshot(places[f"copied_{folder}"])
        assert {name: now[name] for name in files} == files
        assert not [name for name in now if name not in files and not name.endswith((".partial", LOCK, ".vectors"))]
    succeed(*fill(line, places))


@pytest.mark.parametrize("line", [COMPRESS, "report {out}"], ids=["compress", "report"])
def test_a_run_that_another_process_writes_is_left_alone(
    places: Places, copy: Callable[[str], Path], line: str
) -> None:
    places["out"] = copy("run")
    for name in ("config.yaml", "student.safetensors")[: 2 * (line == COMPRESS)]:  # the other one has just begun
        (places["out"] / name).unlink()
    if line == COMPRESS:
        for path in list(places["out"].iterdir()):
            path.unlink()
    with hold_lock(places["out"], "run"):
        before = snapshot(places["out"])
        result = run_cli(*fill(line, places))
        assert_says_once(result, f"the run {places['out']} is being changed by another process")
        assert snapshot(places["out"]) == before


def test_a_gallery_that_may_not_be_read_is_one_line(places: Places) -> None:
    gallery = places["here"] / "gallery"
    gallery.mkdir(mode=0)
    line = ["-m", "indistill.cli", *fill("index build {here}/gallery --model {model} --out {none}", places)]
    as_others = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    if as_others and shutil.which(as_others[0]) is None:
        pytest.skip("root may read all")
    done = subprocess.run(
        [*as_others, sys.executable, *line],
        capture_output=True,
        text=True,
        env=make_environment(),
        timeout=120,
        check=False,
    )
    assert_refused(Result(done.returncode, done.stdout, done.stderr), str(gallery), "Permission denied")
    assert not places["none"].exists()
