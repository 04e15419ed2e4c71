import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import settings

# pytorch-metric-learning imports this part of FAISS, which replaces the methods of all its indexes by ones for torch.
sys.modules.setdefault("faiss.contrib.torch_utils", ModuleType("faiss.contrib.torch_utils"))

from tests.retrieval.milvus import LiteServer, run_milvus_lite  # noqa: E402 - after what FAISS must not import

settings.register_profile("without the clock", deadline=None)  # a loaded machine is no defect
settings.load_profile("without the clock")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    """Returns a server of Milvus Lite for tests that leave it running, each with collections of its own name."""
    with run_milvus_lite(tmp_path_factory.mktemp("server")) as running:
        yield running
