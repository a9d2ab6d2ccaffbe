"""Tensors to a file and back, whatever their dtype, shape and layout; any safetensors library reads the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from hpctool.checkpoint import param_digest, tensorfile
from hpctool.checkpoint.tensors import Spec, spec_of
from hpctool.errors import CorruptError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu),
]


def through_a_file(path: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    path.write_bytes(tensorfile.encode(tensors))
    return read(path, {name: spec_of(tensor) for name, tensor in tensors.items()})


def read(path: Path, specs: dict[str, Spec]) -> dict[str, Any]:
    with tensorfile.Readers(path.parent) as files:
        return {name: files.tensor(path.name, name, spec) for name, spec in specs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (2, 3, 5)])
def test_every_torch_dtype_and_shape_comes_back_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    raw = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8)
    tensor = raw.view(dtype).reshape(shape)
    back = through_a_file(tmp_path / "f", {"t": tensor})["t"]
    assert (back.dtype, back.shape) == (dtype, shape)
    assert param_digest({"t": back}) == param_digest({"t": tensor})


def test_layouts_that_are_not_contiguous_give_their_values(tmp_path: Path) -> None:
    grid = torch.arange(12.0).reshape(3, 4)
    array = np.arange(12).reshape(3, 4)
    tensors: dict[str, Any] = {
        "transposed": grid.t(),
        "strided": grid[::2, ::3],
        "expanded": torch.ones(1).expand(4),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "with gradient": torch.nn.Parameter(grid),
        "fortran": np.asfortranarray(array),
        "backwards": array[::-1],
        "big endian": array.astype(">i4"),
        "long double": np.array([1, 2], np.longdouble),
    }
    back = through_a_file(tmp_path / "f", tensors)
    for name, tensor in tensors.items():
        assert type(back[name]) is (torch.Tensor if isinstance(tensor, torch.Tensor) else np.ndarray), name
        assert back[name].dtype == tensor.dtype, name
        assert back[name].tolist() == tensor.tolist(), name


def test_any_safetensors_library_opens_the_file(tmp_path: Path) -> None:
    tensors = {"a/b": torch.rand(3, 2), "half": torch.rand(3).bfloat16(), "odd": torch.ones(3, dtype=torch.bool)}
    path = tmp_path / "t.safetensors"
    path.write_bytes(tensorfile.encode({**tensors, "complex": torch.ones(2, dtype=torch.complex128)}))
    theirs = safetensors.torch.load_file(path)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())
    assert theirs["complex"].dtype == torch.uint8
    path.write_bytes(tensorfile.encode({"": np.eye(2)}))
    assert safetensors.numpy.load_file(path)[""].tolist() == np.eye(2).tolist()


def test_a_file_that_does_not_fit_its_table_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(tensorfile.encode({"t": np.ones(3)}))
    with pytest.raises(CorruptError, match="24 bytes where 32 belong"):
        read(path, {"t": Spec("numpy", "float64", (4,))})
    with pytest.raises(CorruptError, match="other"):
        read(path, {"other": Spec("numpy", "float64", (3,))})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptError):
        read(path, {"t": Spec("numpy", "float64", (3,))})


@pytest.mark.parametrize("spec", [Spec("numpy", "object", (3,)), Spec("torch", "load", (3,))])
def test_a_dtype_that_is_none_is_damage(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "f").write_bytes(tensorfile.encode({"t": np.ones(3)}))
    with pytest.raises(CorruptError, match="dtype"):
        read(tmp_path / "f", {"t": spec})
