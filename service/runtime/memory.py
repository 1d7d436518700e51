"""Memory that was freed goes back to the kernel."""

import ctypes

_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""Of glibc; other allocators do by themselves what it is for."""


def give_back_memory() -> None:
    """Give back what is free; takes less than a millisecond, and is for when much has been freed.

    Importing modules and loading a version need for a moment as much again as they keep, and glibc keeps that.
    """
    if _trim is not None:
        _trim(0)
