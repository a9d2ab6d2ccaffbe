"""A row is the same row while its key is, and the same content while its bytes are."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hpctool.data.identity import content_digests, places, uids_from_hex, uids_of_keys


def test_a_uid_is_the_hash_of_the_key() -> None:
    assert uids_of_keys(["cat/1.png"])[0].tobytes() == hashlib.sha256(b"cat/1.png").digest()[:16]


def test_uids_survive_being_written_as_text() -> None:
    uids = uids_of_keys(["a", "b", "c"])
    assert np.array_equal(uids_from_hex([uid.tobytes().hex() for uid in uids]), uids)
    for wrong in ("abc", "zz" * 16, "ab" * 15, "ab " * 10 + "cd", "ab" * 15 + "  "):
        with pytest.raises(ValueError, match="hex"):
            uids_from_hex([wrong])


def test_places_are_found_and_absence_is_said() -> None:
    uids = uids_of_keys([f"row {i}" for i in range(100)])
    wanted = np.concatenate([uids[[70, 3]], uids_of_keys(["elsewhere"]), np.full((1, 16), 255, np.uint8)])
    assert places(wanted, uids).tolist() == [70, 3, -1, -1]
    assert places(wanted, uids[:0]).tolist() == [-1] * 4
    assert places(uids[:0], uids).tolist() == []


def test_content_is_all_features_and_nothing_else() -> None:
    image, x = np.zeros((3, 2, 2), np.uint8), np.array([1.0, 1.0, 2.0], np.float32)
    first, same, other = content_digests({"image": image, "x": x})
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_digests_that_begin_alike_are_told_apart() -> None:
    among = np.zeros((5, 16), np.uint8)
    among[:, 15] = [4, 3, 2, 1, 0]
    wanted = np.zeros((6, 16), np.uint8)
    wanted[:, 15] = range(6)
    assert places(wanted, among).tolist() == [4, 3, 2, 1, 0, -1]
