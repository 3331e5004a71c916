"""What becomes of the memory of large results on the CPU."""

import sys

from . import _library
from ._checks import check_int


def keep_memory(limit: int) -> None:
    """Keep at most `limit` bytes of freed memory for later results; 0 gives all of it back.

    Results and scratch of 1 MiB and more that blockops made on the CPU are not returned to the
    system when they are freed, but kept for the next of the same size or up to an eighth less: a
    training step then finds the memory of the step before, where fresh memory costs a page fault
    every few kilobytes, often more time than the kernel takes. What was kept longest goes first.
    The limit is 1 GiB (2**30) until it is set; `blockops.info()["memory"]` says what is kept now.

    Raises TypeError for a limit that is no int, ValueError for a negative one, RuntimeError where
    the compiled library is missing.
    """
    check_int("keep_memory", "limit", limit)
    if limit < 0:
        raise ValueError(f"keep_memory: limit must be at least 0, got {limit}")
    _library.keep_memory(min(limit, sys.maxsize))
