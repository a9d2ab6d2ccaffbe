"""Golden rows: the hardest are among them, and the file is the same for the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpctool.errors import CorruptError
from hpctool.export import golden
from hpctool.export.golden import Golden


def test_the_hardest_rows_are_among_those_that_are_kept() -> None:
    margins_N = np.random.default_rng(0).random(100)
    rows = golden.choose_rows(margins_N, 32)
    assert len(set(rows.tolist())) == 32
    assert set(np.argsort(margins_N)[:16].tolist()) <= set(rows.tolist())
    assert np.argmax(margins_N) in rows


@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 7])
def test_a_small_split_is_kept_as_a_whole(num_rows: int) -> None:
    rows = golden.choose_rows(np.array([0.3, 0.1, 0.2, 0.5, 0.4]), num_rows)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == min(num_rows, 5)
    assert 1 in rows


def test_images_come_with_a_black_and_a_white_one() -> None:
    inputs, uids = golden.with_edges(np.full((2, 4, 4, 3), 7, np.uint8), ["a", "b"])
    assert uids == ["a", "b", "black", "white"]
    assert (inputs[2] == 0).all()
    assert (inputs[3] == 255).all()


def test_feature_rows_come_with_zeros() -> None:
    inputs, uids = golden.with_edges(np.ones((2, 4), np.float32), ["a", "b"])
    assert (uids[-1], inputs[-1].tolist()) == ("zeros", [0.0] * 4)


def test_the_same_rows_give_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    rows = Golden(np.zeros((2, 3), np.float32), {"logits": np.ones((2, 2), np.float32)}, ["a", "b"])
    data = golden.to_bytes(rows)
    assert data == golden.to_bytes(rows)
    (tmp_path / "golden.npz").write_bytes(data)
    back = golden.read(tmp_path / "golden.npz")
    assert (back.uids, back.inputs.tolist()) == (rows.uids, rows.inputs.tolist())
    assert list(back.outputs) == ["logits"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut off", b"nothing"])
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(data)
    with pytest.raises(CorruptError, match="golden"):
        golden.read(tmp_path / "golden.npz")
