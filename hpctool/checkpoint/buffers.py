"""Memory for copies of a state that is kept from save to save: the first touch of new memory costs more than a copy.

For states on GPUs it is page-locked, or copies from there would wait for each other. It is registered, not torch's own
pinned memory: of that, 5.25 GB take 8 (a power of two), and what is given back is kept for more of it.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_PAGE_BYTES = 4096
#: cudaHostRegisterPortable: for all devices that this process sees
_PORTABLE = 1


class Buffers:
    """Named pieces of memory. One save at a time may use them."""

    def __init__(self) -> None:
        self._held: dict[str, memoryview] = {}
        self._registered: set[str] = set()

    def take(self, name: str, size_bytes: int) -> memoryview:
        """`size_bytes` of memory for `name`: what it had the last time if that is enough and not far too much."""
        held = self._held.get(name)
        if held is None or not size_bytes <= len(held) <= 2 * size_bytes:
            # The old one goes first, so that both are never there at once.
            self._drop(name)
            held = self._held[name] = _memory(size_bytes)
            runtime = _gpu_runtime()
            # Where the limit of locked memory forbids it, copies are slower and as right.
            if runtime is not None and int(runtime.cudaHostRegister(_address(held), len(held), _PORTABLE)) == 0:
                self._registered.add(name)
        return held[:size_bytes]

    def touch(self, sizes_bytes: Mapping[str, int]) -> None:
        """Have all that memory, and each page of it, before it is needed."""
        for name, size_bytes in sizes_bytes.items():
            np.frombuffer(self.take(name, size_bytes), np.uint8)[::_PAGE_BYTES] = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for yet."""
        return not self._held

    def _drop(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None and name in self._registered:
            self._registered.discard(name)
            _gpu_runtime().cudaHostUnregister(_address(held))


def _memory(size_bytes: int) -> memoryview:
    memory = mmap.mmap(-1, max(size_bytes, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def _gpu_runtime() -> Any:
    """CUDA's, where this process uses GPUs."""
    torch = sys.modules.get("torch")
    return torch.cuda.cudart() if torch is not None and torch.cuda.is_initialized() else None
