"""What is sharded over ranks comes back to the bit on another number of them, and whole where there are none."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpctool.checkpoint import load, param_digest
from hpctool.checkpoint.sharded import Box, Piece, read_whole
from hpctool.checkpoint.tensorfile import Readers, encode
from hpctool.checkpoint.tensors import Spec
from hpctool.errors import CorruptError
from hpctool.rundir import RunDir

Begin = Callable[[RunDir], RunDir]
Ranks = Callable[[RunDir, int, str], list[dict[str, Any]]]
RANKS = Path(__file__).parent / "sharding_ranks.py"


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Have a number of ranks save or load; what each of them said."""
    command = [sys.executable, str(RANKS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None

        def order(run: RunDir, num_ranks: int, what: str) -> list[dict[str, Any]]:
            assert server.stdout is not None
            asked = {"run": str(run.path), "attempt": run.attempt, "num_ranks": num_ranks, "what": what}
            print(json.dumps(asked), file=server.stdin, flush=True)
            said: list[dict[str, Any]] = json.loads(server.stdout.readline())
            return said

        yield order
        server.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, (1, 3)), (4, (2,)), (1, (2,))])
def test_a_sharded_state_goes_on_on_any_number_of_ranks(
    run: RunDir, begin: Begin, ranks: Ranks, before: int, after: tuple[int, ...]
) -> None:
    (expected,) = {told["digest"] for told in ranks(run, before, "save")}
    for number in (*after, before):
        told = ranks(begin(run), number, "load")
        assert {one["digest"] for one in told} == {expected}
        assert all(one["tied"] for one in told)
        assert sum(one["rows"] for one in told) == 5
        assert [one["per_rank"] for one in told] == [{"rank": r} if number == before else None for r in range(number)]

    folder = run.checkpoint(3)
    found = load(folder).state
    flat = {f"/{k}/{n}": v for k in ("model", "odd") for n, v in found[k].items()}
    moments = {f"/optimizer/state/{i}/{n}": v for i, s in found["optimizer"]["state"].items() for n, v in s.items()}
    assert param_digest(flat | moments) == expected
    assert torch.equal(found["odd"]["columns"], found["odd"]["plain"])
    # Each byte once: what all ranks have is not written by each of them.
    stored = [path.read_bytes() for path in folder.glob("[!r]*.safetensors")]
    num_bytes = sum(len(data) - 8 - int.from_bytes(data[:8], "little") for data in stored)
    tied = found["model"]["second.weight"].nbytes
    assert num_bytes == sum(value.nbytes for value in (flat | moments).values()) - tied


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape, and boxes that cover it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    boxes = [Box((0,) * len(shape), shape)]
    for dim in draw(st.lists(st.integers(0, len(shape) - 1), max_size=2)):
        boxes = [half for box in boxes for half in _halves(box, dim, draw(st.integers(0, 5)))]
    return shape, boxes


def _halves(box: Box, dim: int, at: int) -> list[Box]:
    at = min(at, box.shape[dim])

    def part(start: int, length: int) -> Box:
        offsets, shape = list(box.offsets), list(box.shape)
        offsets[dim], shape[dim] = box.offsets[dim] + start, length
        return Box(tuple(offsets), tuple(shape))

    return [part(0, at), part(at, box.shape[dim] - at)]


@pytest.mark.slow
@given(cuts())
def test_parts_cut_in_any_way_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: tuple[tuple[int, ...], list[Box]]
) -> None:
    (shape, boxes), folder = cut, tmp_path_factory.mktemp("parts")
    whole = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    pieces = []
    for number, box in enumerate(box for box in boxes if box.size):
        (folder / f"{number}").write_bytes(encode({"t": whole[box.within(Box((0,) * len(shape), shape))]}))
        pieces.append(Piece(f"{number}", box))
    with Readers(folder) as files:
        spec = Spec("numpy", "int16", shape)
        assert np.array_equal(read_whole(files, "t", spec, pieces), whole)
        with pytest.raises(CorruptError, match="elements that are needed"):
            read_whole(files, "t", spec, pieces[1:])
