"""Memory for copies of a state that is kept from save to save: the first touch of new memory costs more than a copy."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Mapping

import numpy as np

_PAGE_BYTES = 4096


class Buffers:
    """Named pieces of memory. One save at a time may use them."""

    def __init__(self) -> None:
        self._held: dict[str, memoryview] = {}

    def take(self, name: str, size_bytes: int) -> memoryview:
        """`size_bytes` of memory for `name`: what it had the last time if that is enough and not far too much."""
        held = self._held.get(name)
        if held is None or not size_bytes <= len(held) <= 2 * size_bytes:
            # The old one goes first, so that both are never there at once.
            self._held.pop(name, None)
            held = self._held[name] = _memory(size_bytes)
        return held[:size_bytes]

    def touch(self, sizes_bytes: Mapping[str, int]) -> None:
        """Have all that memory, and each page of it, before it is needed."""
        for name, size_bytes in sizes_bytes.items():
            np.frombuffer(self.take(name, size_bytes), np.uint8)[::_PAGE_BYTES] = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for yet."""
        return not self._held


def _memory(size_bytes: int) -> memoryview:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # Page-locked, or copies from a GPU would wait for each other.
        return memoryview(torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy())
    memory = mmap.mmap(-1, max(size_bytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
