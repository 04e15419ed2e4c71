import subprocess
import sys

import pytest

from indistill.memory import keep_freed_memory

COUNT_FAULTS = """
import resource, sys
import torch
from indistill.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("not kept")
def step():
    blocks = [torch.ones(2**20) for _ in range(4)]  # 4 MiB each
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_freed_memory_is_kept() -> None:
    assert count_faults("kept") * 4 < count_faults("as it comes")
