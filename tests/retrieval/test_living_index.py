"""Random lives of an index against a plain dictionary and brute force, with deaths at any file operation."""

import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from indistill.data.sets import open_folder
from indistill.errors import DataError, InputError
from indistill.export.session import EmbeddingSession
from indistill.retrieval.index import Index
from indistill.retrieval.store.build import BuildOptions, build_index
from indistill.retrieval.store.changes import add_images, remove_items, sync_folder
from indistill.retrieval.store.generations import lock_index
from indistill.retrieval.store.selection import Selection
from indistill.retrieval.store.upkeep import compact_index, rebuild_index, verify_index

NAMES = [f"{folder}/{name}.png" for folder in ("cat", "dog") for name in "abc"]
REPLACING = BuildOptions(overwrite=True)
LIVES = int(os.environ.get("INDISTILL_LIVES", "25"))
names, contents = st.sampled_from(NAMES), st.integers(0, 7)
FILE_EVENTS = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "sqlite3.connect")


def die_at(event_number: int, act: Callable[[], object]) -> bool:
    """Acts in a child process that is gone at its n-th file operation; returns whether it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this process has threads, which the child does without
        child = os.fork()
    if not child:
        left = event_number

        def count(event: str, _: object) -> None:
            nonlocal left
            if event in FILE_EVENTS:
                left -= 1
                if left < 0:
                    os._exit(9)

        sys.addaudithook(count)
        try:
            act()
        except BaseException:  # noqa: BLE001 - a child of this test must not go on as the test
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class LivingIndex(RuleBasedStateMachine):
    """`disk` is what the gallery's files hold, `expected` what the index must: numbers of pictures by path."""

    model: EmbeddingSession
    pictures: list[bytes]

    @initialize(files=st.dictionaries(names, contents, min_size=1))
    def build(self, files: dict[str, int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="living-"))
        self.gallery, self.index = self.folder / "gallery", self.folder / "index"
        self.disk: dict[str, int] = {}
        self.ids: dict[int, str] = {}  # what each id ever stood for
        self.vectors = self.model.embed_images(self.pictures[:8])
        self.hashes = [hashlib.sha256(picture).hexdigest() for picture in self.pictures[:8]]
        self.clock = 0
        for name, content in files.items():
            self.write(name, content)
        build_index(open_folder(self.gallery, "g"), self.model, self.index)
        self.expected = dict(self.disk)

    @rule(name=names, content=contents)
    def write(self, name: str, content: int) -> None:
        path = self.gallery / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.pictures[content])
        self.clock += 1  # a clock that stands still between two writes would hide the second one
        os.utime(path, ns=(self.clock * 10**9, self.clock * 10**9))
        self.disk[name] = content

    @rule(name=names)
    def delete(self, name: str) -> None:
        (self.gallery / name).unlink(missing_ok=True)
        self.disk.pop(name, None)

    @rule(old=names, new=names)
    def move(self, old: str, new: str) -> None:
        if old in self.disk and old != new:
            (self.gallery / new).parent.mkdir(exist_ok=True)
            (self.gallery / old).rename(self.gallery / new)
            self.disk[new] = self.disk.pop(old)

    @rule()
    def sync(self) -> None:
        if self.disk:
            sync_folder(self.index)
            self.expected = dict(self.disk)
        else:
            with pytest.raises(DataError):
                sync_folder(self.index)

    @rule(chosen=st.sets(names, min_size=1))
    def add(self, chosen: set[str]) -> None:
        there = sorted(chosen & self.disk.keys())
        if there:
            add_images(self.index, [str(self.gallery / name) for name in there])
            self.expected |= {name: self.disk[name] for name in there}

    @rule(name=names)
    def remove(self, name: str) -> None:
        if name not in self.expected or len(self.expected) == 1:
            with pytest.raises(InputError):
                remove_items(self.index, Selection(paths=(name,)))
        else:
            remove_items(self.index, Selection(paths=(name,)))
            del self.expected[name]

    @rule()
    def compact(self) -> None:
        compact_index(self.index)

    @rule()
    def rebuild(self) -> None:
        rebuild_index(self.index)

    @precondition(lambda self: self.disk)
    @rule(death=st.integers(0, 120), which=st.sampled_from(["sync", "compact", "remove", "build"]), name=names)
    def die(self, death: int, which: str, name: str) -> None:
        acts: dict[str, tuple[Callable[[], object], dict[str, int]]] = {
            "sync": (lambda: sync_folder(self.index), self.disk),
            "compact": (lambda: compact_index(self.index), self.expected),
            "remove": (
                lambda: remove_items(self.index, Selection(paths=(name,))),
                {path: content for path, content in self.expected.items() if path != name},
            ),
            "build": (
                lambda: build_index(
                    open_folder(self.gallery, "g"), self.model, self.index, BuildOptions(overwrite=True)
                ),
                self.disk,
            ),
        }
        act, new = acts[which]
        finished = die_at(death, act)
        with Index(self.index) as index:
            found = {item.path: self.hashes.index(item.sha256) for item in index.catalogue.list_items()}
        assert found == new if finished else found in (new, self.expected)
        self.expected = found
        if which == "build":
            self.ids.clear()  # a new build may begin anew
        with lock_index(self.index):
            pass

    @invariant()
    def the_index_is_the_dictionary(self) -> None:
        if not hasattr(self, "expected"):
            return
        assert verify_index(self.index).problems == ()
        with Index(self.index) as index:
            items = list(index.catalogue.list_items())
            assert {item.path: self.hashes.index(item.sha256) for item in items} == self.expected
            for item in items:
                assert item.label == item.path.split("/")[0]
                assert self.ids.setdefault(item.id, item.sha256) == item.sha256
            stored = self.vectors[[self.expected[item.path] for item in items]]
            ids = np.array([item.id for item in items])
            for query in (self.vectors[0], self.vectors[5]):
                scores = stored @ query
                (hits,) = index.search(query[np.newaxis], 4)
                assert len(hits) == min(4, len(items))
                order = np.lexsort((ids, -scores.round(5)))[:4]
                np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=1e-5)
                assert [hit.id for hit in hits] == ids[order].tolist()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


@pytest.mark.slow
def test_any_life_of_an_index_is_that_of_a_dictionary(small_model: EmbeddingSession, pictures: list[bytes]) -> None:
    """INDISTILL_LIVES=1000 tries a thousand sequences."""
    LivingIndex.model, LivingIndex.pictures = small_model, pictures
    run_state_machine_as_test(
        LivingIndex,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
