"""Give large temporary tensors back to the system, so that small kept ones leave no holes."""

import ctypes
import os
import platform
from functools import cache

M_MMAP_THRESHOLD = -3
"""The option's number in ``malloc.h`` of glibc."""
LARGE = 2**20
"""Bytes."""


@cache
def unbroken_heap() -> bool:
    """Have glibc map each large block by itself, in this whole process; say whether it does.

    By itself it raises that limit to 32 MiB as large blocks are freed. Later ones then come from
    the heap, where what is kept for the backward pass settles between them, and what they leave
    free fits no other: in a step of BERT-base the process's peak was twice as high. A limit of
    the user's own, ``MALLOC_MMAP_THRESHOLD_``, is left as it is.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE))
