"""TorchScript: scripted or traced with the reason; only torch.jit's own words about itself are silenced."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpctool.errors import CorruptError
from hpctool.export import torchscript


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Unscriptable(nn.Module):
    def forward(self, x: Tensor, **_: int) -> Tensor:
        if x.shape[0] == 1:
            return x
        return x * 2


def test_what_can_be_scripted_is() -> None:
    graph = torchscript.to_graph(Doubling(), torch.zeros(3, 2))
    assert (graph.method, graph.reason, graph.warnings) == ("script", "", [])


def test_what_cannot_be_scripted_is_traced_with_the_reason_and_the_tracers_warnings() -> None:
    graph = torchscript.to_graph(Unscriptable(), torch.zeros(3, 2))
    assert graph.method == "trace"
    assert "keyword-only arguments" in graph.reason
    assert any("Python boolean" in text for text in graph.warnings)


def test_the_bytes_load_and_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    graph = torchscript.to_graph(Unscriptable(), torch.zeros(3, 2))
    with zipfile.ZipFile(io.BytesIO(graph.data)) as archive:
        assert not any(str(Path(__file__).parent).encode() in archive.read(name) for name in archive.namelist())
    (tmp_path / "model.ts").write_bytes(graph.data)
    assert torchscript.load(tmp_path / "model.ts")(torch.ones(3, 2)).tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_only_the_deprecation_of_torch_jit_is_silenced(category: type[Warning]) -> None:
    with warnings.catch_warnings(record=True) as heard, torchscript.quiet():
        warnings.warn("`torch.jit.script` is deprecated. Please switch to `torch.compile`.", category, stacklevel=1)
        warnings.warn("torch.jit.load is not supported in Python 3.14+ and may break.", category, stacklevel=1)
    assert not heard
    with torchscript.quiet(), pytest.raises(category, match=r"torch\.other"):
        warnings.warn("`torch.other` is deprecated", category, stacklevel=1)


def test_a_file_that_is_no_torchscript_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "model.ts").write_bytes(b"not a zip file")
    with pytest.raises(CorruptError, match="torch cannot read it"):
        torchscript.load(tmp_path / "model.ts")
