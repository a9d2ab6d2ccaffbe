"""What one rank writes of a checkpoint: the images of its files, a copy that later steps cannot change.

state.json                structure and scalars of the replicated state, and where each tensor lies (rank 0)
tensors-00000.safetensors this rank's share of the replicated tensors; shares are split by size
rank-00000.json           structure and scalars of the rank's own state (random generators …), if it has one
rank-00000.safetensors    and its tensors
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.checkpoint import tensorfile
from hpctool.checkpoint.flatten import Flat, flatten, unflatten
from hpctool.checkpoint.tensors import Spec, spec_of
from hpctool.errors import CorruptError, NewerFormat

FORMAT = 1
STATE = "state.json"


@dataclass(frozen=True)
class Snapshot:
    """File images by name, and the digest of the replicated tensors' table, in which all ranks must agree."""

    images: dict[str, bytes | bytearray]
    table_digest: str


def take(state: Any, per_rank: Any, rank: int, size: int) -> Snapshot:
    """Copy what this rank has to write. Raises InputError that names what cannot be stored."""
    flat = flatten(state)
    shares = split({name: tensor.nbytes for name, tensor in flat.tensors.items()}, size)
    homes = {name: f"tensors-{owner:05d}.safetensors" for owner, share in enumerate(shares) for name in share}
    text = _document(flat, homes)
    images: dict[str, bytes | bytearray] = {STATE: text} if rank == 0 else {}
    _add_tensors(images, f"tensors-{rank:05d}.safetensors", {name: flat.tensors[name] for name in shares[rank]})
    if per_rank is not None:
        own = flatten(per_rank)
        home = f"rank-{rank:05d}.safetensors"
        images[own_state(rank)] = _document(own, dict.fromkeys(own.tensors, home))
        _add_tensors(images, home, own.tensors)
    return Snapshot(images, files.sha256_bytes(files.canonical_json(_table(flat, homes))))


def own_state(rank: int) -> str:
    """The name of the file that holds what only this rank has."""
    return f"rank-{rank:05d}.json"


def split(sizes_bytes: Mapping[str, int], num_ranks: int) -> list[list[str]]:
    """Names for each rank, so that all write about the same number of bytes; the same answer on every rank."""
    shares: list[list[str]] = [[] for _ in range(num_ranks)]
    loads = [(0, rank) for rank in range(num_ranks)]
    for name in sorted(sizes_bytes, key=lambda name: (-sizes_bytes[name], name)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(name)
        heapq.heappush(loads, (load + sizes_bytes[name], rank))
    return shares


def read(folder: Path, name: str) -> Any:
    """The state that `state.json`, or a rank's own file, describes. Raises CorruptError, NewerFormat, OSError."""
    path = folder / name
    document = files.read_json(path)
    if document["format"] > FORMAT:
        raise NewerFormat(path, "checkpoint", document["format"], FORMAT)
    by_file: dict[str, dict[str, Spec]] = {}
    for tensor, row in document["tensors"].items():
        spec = Spec(row["kind"], row["dtype"], tuple(row["shape"]))
        by_file.setdefault(row["file"], {})[tensor] = spec
    flat = Flat(document["structure"])
    for home, specs in by_file.items():
        flat.tensors |= tensorfile.read(folder / home, specs)
    try:
        return unflatten(flat)
    except (KeyError, ValueError) as error:
        raise CorruptError(path, f"its structure does not fit ({error})") from error


def _table(flat: Flat, homes: Mapping[str, str]) -> dict[str, Any]:
    return {name: {**asdict(spec_of(tensor)), "file": homes[name]} for name, tensor in flat.tensors.items()}


def _document(flat: Flat, homes: Mapping[str, str]) -> bytes:
    # Not canonical: the order of keys is part of the state.
    content = {"format": FORMAT, "structure": flat.structure, "tensors": _table(flat, homes)}
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def _add_tensors(images: dict[str, bytes | bytearray], name: str, tensors: Mapping[str, Any]) -> None:
    if tensors:
        images[name] = tensorfile.encode(tensors)
