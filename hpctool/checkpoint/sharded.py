"""Tensors of which each rank holds a part (torch's DTensor, FSDP2): which part that is, and how another one is read.

A checkpoint holds the parts as they were, each with its place in the whole. Whoever loads asks for a *box* (offsets
and shape) of a tensor, however many ranks had saved it, and reads only the bytes that lie in it.

`placements` say how a tensor is laid out over the dimensions of a mesh: `shard:0` cut along dimension 0, `replicate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpctool.checkpoint.tensorfile import Readers
from hpctool.checkpoint.tensors import Spec, empty
from hpctool.errors import CorruptError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it begins in each dimension of the whole, and how long it is there."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def common(self, other: Box) -> Box:
        """What lies in both; of size 0 where nothing does."""
        starts = tuple(map(max, self.offsets, other.offsets))
        mine, theirs = self._ends(), other._ends()
        return Box(starts, tuple(max(0, min(a, b) - s) for a, b, s in zip(mine, theirs, starts, strict=True)))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Where this box lies in memory that holds `outer`."""
        begins = [mine - theirs for mine, theirs in zip(self.offsets, outer.offsets, strict=True)]
        return tuple(slice(b, b + n) for b, n in zip(begins, self.shape, strict=True))

    def rows_of(self, outer: Box) -> bool:
        """Whether it is whole rows of `outer`, which lie next to each other in memory."""
        return self.shape[1:] == outer.shape[1:]

    def _ends(self) -> list[int]:
        return [offset + length for offset, length in zip(self.offsets, self.shape, strict=True)]


@dataclass(frozen=True)
class Piece:
    """A saved part of a tensor, and the file that holds it."""

    file: str
    box: Box


def placements_of(value: Any) -> list[str]:
    """How a DTensor is laid out over its mesh."""
    return [f"shard:{one.dim}" if one.is_shard() else "replicate" for one in value.placements]


def own_box(value: Any) -> Box | None:
    """The part of a DTensor that this rank writes; None where it has none, or where another rank has the same."""
    mesh, placements = value.device_mesh, value.placements
    coordinate = mesh.get_coordinate()
    copies = [place for place, one in zip(coordinate or [], placements, strict=True) if not one.is_shard()]
    if coordinate is None or any(copies):
        return None
    box = _box(tuple(value.shape), mesh, placements)
    return box if box.size else None


def read_whole(files: Readers, name: str, spec: Spec, pieces: Iterable[Piece]) -> Any:
    """A tensor put together from its parts. Raises CorruptError where one is missing, OSError."""
    return _read(files, name, spec, Box((0,) * len(spec.shape), spec.shape), pieces)


def read_sharded(
    files: Readers, name: str, spec: Spec, pieces: Iterable[Piece], placements: Sequence[str], mesh: DeviceMesh
) -> Any:
    """A DTensor laid out over `mesh` as the saved one was over its own. Raises CorruptError, OSError."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if len(placements) != mesh.ndim:
        raise CorruptError(
            name, f"it was saved on a mesh of {len(placements)} dimensions, and this one has {mesh.ndim}"
        )
    placed = [Replicate() if one == "replicate" else Shard(int(one.partition(":")[2])) for one in placements]
    local = _read(files, name, spec, _box(spec.shape, mesh, placed), pieces).to(mesh.device_type)
    strides = tuple(math.prod(spec.shape[dim + 1 :]) for dim in range(len(spec.shape)))
    import torch

    return DTensor.from_local(local, mesh, placed, run_check=False, shape=torch.Size(spec.shape), stride=strides)


def _box(shape: tuple[int, ...], mesh: Any, placements: Any) -> Box:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    own_shape, offsets = compute_local_shape_and_global_offset(shape, mesh, placements)
    return Box(tuple(offsets), tuple(own_shape))


def _read(files: Readers, name: str, spec: Spec, wanted: Box, pieces: Iterable[Piece]) -> Any:
    tensor, raw = empty(Spec(spec.kind, spec.dtype, wanted.shape))
    num_read = 0
    for piece in pieces:
        part = wanted.common(piece.box)
        if not part.size:
            continue
        file = files.of(piece.file)
        if part.shape and part.rows_of(piece.box) and part.rows_of(wanted):
            # Whole rows, which lie next to each other here and there: straight into their place.
            row_bytes = math.prod(part.shape[1:]) * int(tensor.itemsize)
            start = (part.offsets[0] - wanted.offsets[0]) * row_bytes
            skipped = (part.offsets[0] - piece.box.offsets[0]) * row_bytes
            room = raw[start : start + part.shape[0] * row_bytes]
            file.read(name, room, skipped, piece.box.size * int(tensor.itemsize))
        else:
            whole, whole_raw = empty(Spec(spec.kind, spec.dtype, piece.box.shape))
            file.read(name, whole_raw)
            tensor[part.within(wanted)] = whole[part.within(piece.box)]
        num_read += part.size
    if num_read != wanted.size:
        raise CorruptError(name, f"its saved parts have {num_read} of the {wanted.size} elements that are needed")
    return tensor
