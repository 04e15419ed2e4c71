"""Memory of the training process."""

import ctypes
import sys

# glibc, malloc.h: the options of mallopt(3).
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
LARGEST_BLOCK = 32 * 2**20  # the most that glibc accepts for M_MMAP_THRESHOLD
KEPT = 2**30


def keep_freed_memory() -> bool:
    """Makes the C library keep freed memory for the next request; returns whether it does.

    A training step on the CPU frees and requests the same megabytes each time. glibc gives them back to the kernel, and
    each page that is requested again costs a page fault, which a small student's step notices. At most 1 GiB is kept.
    Nothing happens where the C library is another one.
    """
    if sys.platform != "linux":
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    options = ((M_MMAP_THRESHOLD, LARGEST_BLOCK), (M_TRIM_THRESHOLD, KEPT), (M_TOP_PAD, KEPT // 16))
    answers = [set_option(option, value) for option, value in options]
    return answers == [1, 1, 1]
