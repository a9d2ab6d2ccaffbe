"""A rank's part of a checkpoint: balanced, the same plan on every rank, and a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctool.checkpoint import snapshot
from hpctool.errors import CorruptError, NewerFormat

STATE: dict[str, Any] = {"w": np.arange(1000.0), "b": np.arange(10.0), "i": np.arange(900), "lr": 0.1}


def write(folder: Path, taken: snapshot.Snapshot) -> None:
    for name, content in taken.contents():
        (folder / name).write_bytes(content)


@pytest.mark.slow
@given(st.dictionaries(st.text(), st.integers(0, 1000)), st.integers(1, 5))
def test_shares_hold_every_name_once_and_differ_by_one_tensor_at_most(sizes: dict[str, int], num_ranks: int) -> None:
    shares = snapshot.split(sizes, num_ranks)
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    assert shares == snapshot.split(dict(reversed(sizes.items())), num_ranks)


def test_the_parts_of_all_ranks_make_the_whole(tmp_path: Path) -> None:
    taken = [snapshot.take(STATE, {"rank": rank}, rank, 3) for rank in range(3)]
    assert len({part.table_digest for part in taken}) == 1
    assert [sum("tensors" in name for name in part.images) for part in taken] == [1, 1, 1]
    for part in taken:
        write(tmp_path, part)
    back = snapshot.read(tmp_path, snapshot.STATE)
    assert all(np.array_equal(back[name], value) for name, value in STATE.items())
    assert snapshot.read(tmp_path, snapshot.own_state(2)) == {"rank": 2}


def test_a_snapshot_does_not_change_when_training_goes_on(tmp_path: Path) -> None:
    weight = np.zeros(4)
    taken = snapshot.take({"w": weight}, None, 0, 1)
    weight += 1
    write(tmp_path, taken)
    assert snapshot.read(tmp_path, snapshot.STATE)["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(("form", "error"), [('"format":3', NewerFormat), ('"format":1', CorruptError)])
def test_another_format_or_form_is_refused(tmp_path: Path, form: str, error: Any) -> None:
    (tmp_path / "state.json").write_text("{" + form + ',"structure":{"~new":1},"tensors":{}}')
    with pytest.raises(error):
        snapshot.read(tmp_path, "state.json")
