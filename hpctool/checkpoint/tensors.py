"""A tensor of either kind, torch or NumPy, as plain bytes and back. torch is imported only where its own come in."""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Kind = Literal["torch", "numpy"]
Bytes = npt.NDArray[np.uint8]

# bool, int, unsigned, float, complex: what NumPy stores as plain bytes.
_PLAIN_KINDS = "biufc"


class Spec(NamedTuple):
    """What is needed to make a tensor from its bytes: `dtype` is the library's own name, such as bfloat16 or >f4."""

    kind: Kind
    dtype: str
    shape: tuple[int, ...]


def kind_of(value: Any) -> Kind | None:
    """Which library's tensor a value is; None for everything else, subclasses of other packages included."""
    return _kind(type(value))  # type: ignore[arg-type]  # mypy takes no class for hashable


# By type, since every leaf of a state is asked at each save, some of them several times.
@functools.cache
def _kind(cls: type) -> Kind | None:
    if cls is np.ndarray:
        return "numpy"
    torch = sys.modules.get("torch")
    is_torch = torch is not None and issubclass(cls, torch.Tensor) and cls.__module__.startswith("torch")
    return "torch" if is_torch else None


def is_sharded(value: Any) -> bool:
    """Whether a tensor is torch's DTensor, of which each rank holds a part (sharded.py)."""
    cls = type(value)
    return cls.__name__ == "DTensor" and cls.__module__.startswith("torch.distributed")


def obstacle(value: Any) -> str:
    """Why a tensor cannot be stored as plain bytes; empty where it can."""
    if kind_of(value) == "numpy":
        return "" if value.dtype.kind in _PLAIN_KINDS else f"an array of dtype {value.dtype}"
    if is_sharded(value):
        odd = [str(one) for one in value.placements if type(one).__name__ not in ("Shard", "Replicate")]
        return f"a DTensor that is placed by {odd[0]}" if odd else obstacle(value.to_local())
    torch = sys.modules["torch"]
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided:
        return f"a tensor of layout {value.layout}"
    if value.is_quantized:
        return f"a quantized tensor ({value.dtype})"
    return "a tensor without data (device meta)" if value.device.type == "meta" else ""


def spec_of(value: Any) -> Spec:
    """The spec of a storable tensor; of one that is sharded, that of the whole."""
    if kind_of(value) == "numpy":
        dtype = value.dtype.name if value.dtype.isnative else value.dtype.str
        return Spec("numpy", dtype, tuple(value.shape))
    return Spec("torch", _torch_name(value.dtype), tuple(value.shape))


@functools.cache
def _torch_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def as_bytes(value: Any) -> Bytes:
    """The values of a tensor in C order, uint8 (size in bytes,); a view of its memory where that is possible."""
    if kind_of(value) == "numpy":
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    array: Bytes = _flat(value.detach().cpu()).numpy()
    return array


def _flat(value: Any) -> Any:
    """A torch tensor's bytes, uint8 (size in bytes,), where it is."""
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    # Not reshape: a dimension of length 1 may have any stride and still count as contiguous.
    return plain.as_strided((plain.numel(),), (1,)).view(sys.modules["torch"].uint8)


def copy_into(value: Any, room: Bytes) -> None:
    """Copy the values of a tensor, in C order, into its bytes; from a GPU without waiting until it is done."""
    if kind_of(value) == "numpy":
        np.copyto(room.view(value.dtype).reshape(value.shape), value)
        return
    if value.device.type == "cpu":
        # NumPy's copy does not mind where memory begins: torch's takes a third longer beside multiples of 64 bytes, and
        # crashes for complex numbers beside multiples of 16.
        room[:] = _flat(value).numpy()
    else:
        sys.modules["torch"].from_numpy(room).copy_(_flat(value), non_blocking=True)


def wait_for_copies() -> None:
    """Wait until what `copy_into` was given from GPUs is there."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def empty(spec: Spec) -> tuple[Any, Bytes]:
    """A new tensor on the CPU and its bytes to be filled, uint8 (size in bytes,). Raises ValueError on a bad dtype."""
    if spec.kind == "numpy":
        dtype = np.dtype(spec.dtype)
        if dtype.kind not in _PLAIN_KINDS:
            raise ValueError(f"dtype {spec.dtype} is not one of plain bytes")
        array = np.empty(spec.shape, dtype)
        return array, array.reshape(-1).view(np.uint8)
    import torch

    torch_dtype = getattr(torch, spec.dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {spec.dtype}")
    tensor = torch.empty(spec.shape, dtype=torch_dtype, device="cpu")
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy()


def identity(value: Any) -> Hashable:
    """Equal for tensors that are the same memory seen the same way (tied weights); None for empty ones."""
    if kind_of(value) == "numpy":
        place = value.__array_interface__["data"][0]
        return ("numpy", place, value.shape, value.strides, value.dtype.str) if value.size else None
    if is_sharded(value):
        # The storage itself: a rank whose part is empty has no address to compare.
        local, placed = value.to_local(), str(value.placements)
        return ("sharded", local.untyped_storage()._cdata, local.storage_offset(), tuple(value.shape), placed)
    place = (value.data_ptr(), value.is_conj(), value.is_neg())
    seen = (value.shape, value.stride(), value.dtype, value.device)
    return ("torch", place, seen) if value.numel() else None
