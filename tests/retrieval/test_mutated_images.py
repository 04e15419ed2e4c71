from pathlib import Path

import numpy as np
import pytest

from benchmarks.mutated_images import check_build, check_images, mutate_images, write_images, write_model
from indistill.export.session import EmbeddingSession
from indistill.retrieval.embed import EmbeddedImages

COUNT = 300


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    path = tmp_path_factory.mktemp("model") / "student.onnx"
    write_model(path)
    return EmbeddingSession(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of damaged metadata
def test_every_mutated_image_is_embedded_or_skipped_as_it_is_alone(tmp_path: Path, session: EmbeddingSession) -> None:
    write_images(tmp_path / "images", COUNT, seed=0)
    outcome = check_images(tmp_path / "images", session)
    assert outcome.embedded + outcome.skipped == COUNT
    assert min(outcome.embedded, outcome.skipped) > COUNT / 10  # both happen
    assert outcome.slowest_s < 20


def test_every_mutated_image_is_accounted_for_by_a_build(tmp_path: Path, session: EmbeddingSession) -> None:
    write_images(tmp_path / "images", COUNT, seed=1)
    outcome = check_build(tmp_path / "images", session.path, tmp_path / "index")
    assert outcome.embedded + outcome.skipped == COUNT
    assert min(outcome.embedded, outcome.skipped) > COUNT / 10


def test_the_check_of_a_build_finds_a_file_that_is_not_accounted_for(tmp_path: Path, session: EmbeddingSession) -> None:
    write_images(tmp_path / "images", 20, seed=1)
    (tmp_path / "images" / "note.txt").write_text("passed over by a build")
    with pytest.raises(AssertionError):
        check_build(tmp_path / "images", session.path, tmp_path / "index")
    with pytest.raises(AssertionError, match=r"not done after 0\.1 s"):
        check_build(tmp_path / "images", session.path, tmp_path / "second", limit_s=0.1)


def test_the_mutations_are_those_of_the_seed() -> None:
    assert list(mutate_images(20, 1)) == list(mutate_images(20, 1)) != list(mutate_images(20, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_check_finds_rows_that_are_shifted(
    tmp_path: Path, session: EmbeddingSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import mutated_images

    def shift(*arguments: object) -> EmbeddedImages:
        found = embed(*arguments)
        return EmbeddedImages(found.files, np.roll(found.vectors, 1, axis=0), found.skipped)

    embed = mutated_images.embed_files
    monkeypatch.setattr(mutated_images, "embed_files", shift)
    write_images(tmp_path / "images", 20, seed=0)
    with pytest.raises(AssertionError):
        check_images(tmp_path / "images", session)
