"""A small index, and servers of it that tests do not change."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from indistill.export.session import EmbeddingSession
from tests.retrieval.serving import SETTINGS, TOKEN, Server, build_small_index, export_model, serve_index, write_gallery


@pytest.fixture(scope="package")
def session(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingSession:
    return export_model(tmp_path_factory.mktemp("model") / "student.onnx")


@pytest.fixture(scope="package")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="package")
def index(tmp_path_factory: pytest.TempPathFactory, gallery: Path, session: EmbeddingSession) -> Path:
    return build_small_index(gallery, session, tmp_path_factory.mktemp("built") / "index")


@pytest.fixture(scope="package")
def server(index: Path) -> Iterator[Server]:
    with serve_index(index, SETTINGS) as running:
        yield running


@pytest.fixture(scope="package")
def guarded(index: Path) -> Iterator[Server]:
    with serve_index(index, replace(SETTINGS, token=TOKEN)) as running:
        yield running
