"""Memory that copies are kept in; of GPUs only what can be seen without one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpctool.checkpoint.buffers import Buffers


class FakeRuntime:
    """CUDA's calls as they are asked for; no GPU is here."""

    def __init__(self, answer: int = 0) -> None:
        self.answer = answer
        self.registered: dict[int, int] = {}
        self.dropped: list[int] = []

    def cudaHostRegister(self, address: int, size_bytes: int, flags: int) -> int:
        self.registered[address] = size_bytes
        return self.answer

    def cudaHostUnregister(self, address: int) -> int:
        self.dropped.append(self.registered.pop(address))
        return 0


def with_gpu(monkeypatch: pytest.MonkeyPatch, answer: int = 0) -> FakeRuntime:
    runtime = FakeRuntime(answer)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


def test_memory_for_states_on_gpus_is_registered_once_and_let_go_before_it_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime, buffers = with_gpu(monkeypatch), Buffers()
    for size in (5000, 4000, 5000):
        buffers.take("a", size)[:] = bytes(size)
    assert [*runtime.registered.values()] == [5000], "and not more, as of torch's own pinned memory"
    room = buffers.take("a", 20_000)
    assert runtime.dropped == [5000]
    assert runtime.registered == {np.frombuffer(room, np.uint8).ctypes.data: 20_000}


def test_memory_that_may_not_be_locked_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, buffers = with_gpu(monkeypatch, answer=2), Buffers()
    buffers.take("a", 5000)[:] = bytes(5000)
    assert len(buffers.take("a", 20_000)) == 20_000
    assert runtime.dropped == []
