import ctypes
import platform
from types import SimpleNamespace

import pytest

from indistill.training import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_glibc_accepts_every_option() -> None:
    assert memory.keep_freed_memory()


@pytest.mark.parametrize("refused", [memory.M_MMAP_THRESHOLD, memory.M_TRIM_THRESHOLD, memory.M_TOP_PAD])
def test_a_refused_option_is_told(monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
    monkeypatch.setattr(memory.sys, "platform", "linux")
    library = SimpleNamespace(mallopt=lambda option, _value: int(option != refused))
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: library)
    assert not memory.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert not memory.keep_freed_memory()
