"""A few attempts of each fuzz target for files, the same at each run; `python -m benchmarks.fuzz` makes many."""

from pathlib import Path
from random import Random

import pytest

from benchmarks.fuzz import originals
from benchmarks.fuzz.__main__ import load_target
from indistill.errors import InputError

ATTEMPTS = {
    "images": 2,
    "index": 12,
    "model": 12,
    "model_folder": 30,  # of which hardly any opens
    "weights": 25,
    "shards": 25,
    "tables": 12,
    "galleries": 12,
    "teacher_caches": 30,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "originals"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(originals, "FACTORIES", {"flat": "Flat", "ivf": "IVF4,SQ8"})
        originals.write_originals(folder)
    return folder


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
def test_attempts_end_well_or_in_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    target = load_target(name)
    for place in ("provide", "FACTORIES"):
        if hasattr(target, place):
            monkeypatch.setattr(target, place, {"provide": made.joinpath, "FACTORIES": ("flat", "ivf")}[place])
    refused = 0
    for seed in range(ATTEMPTS[name]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            target.attempt(Random(f"{name} {seed}"), folder)
        except InputError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1  # noqa: PT017
    assert refused < ATTEMPTS[name]
