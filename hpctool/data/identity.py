"""Identity: what makes a row the same row. Its uid, for ever; the digest of its features, while they do not change.

Both are uint8 (n, 16). A uid is the first half of the SHA-256 of the row's stable key, so preparing the same source
again gives the same uids, and its bits are as good as random: the split rule reads them as a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.ragged import Ragged, Values

Digests = npt.NDArray[np.uint8]
Words = npt.NDArray[Any]  # the same 16 bytes as one value: void (n,)

UID_BYTES = 16
_FEW = 8
_SIFT_BITS = 22
_SIFT = np.uint64((1 << _SIFT_BITS) - 1)


def uids_of_keys(keys: Sequence[str]) -> Digests:
    """The uid of each stable key: uint8 (n, 16)."""
    # A file's name may hold bytes that are no text; they stand for themselves.
    raw = b"".join(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:UID_BYTES] for key in keys)
    return np.frombuffer(raw, np.uint8).reshape(-1, UID_BYTES)


def uids_from_hex(uids: Sequence[str]) -> Digests:
    """32 hex digits each → uint8 (n, 16). Raises ValueError."""
    try:
        raw = bytes.fromhex("".join(uids))
    except ValueError:
        raw = b""
    # Both, because spaces between digits are passed over.
    if set(map(len, uids)) - {2 * UID_BYTES} or len(raw) != UID_BYTES * len(uids):
        raise ValueError("a uid has 32 hex digits")
    return np.frombuffer(raw, np.uint8).reshape(-1, UID_BYTES)


def content_digests(features: Mapping[str, Values]) -> Digests:
    """A digest of each row's features, their names, dtypes and shapes: uint8 (n, 16)."""
    columns = [(_header(name, features[name]), features[name]) for name in sorted(features)]
    raw = []
    for row in range(len(columns[0][1])):
        digest = hashlib.sha256()
        for header, values in columns:
            data = np.ascontiguousarray(values[row])
            # The length of a ragged row keeps its end apart from the next column's beginning.
            digest.update(header + (b"%d|" % len(data) if isinstance(values, Ragged) else b""))
            digest.update(data.tobytes())
        raw.append(digest.digest()[:UID_BYTES])
    return np.frombuffer(b"".join(raw), np.uint8).reshape(-1, UID_BYTES)


def _header(name: str, values: Values) -> bytes:
    shape = (values.values if isinstance(values, Ragged) else values).shape[1:]
    return f"{name}|{values.dtype.str}|{'ragged' if isinstance(values, Ragged) else ''}{shape}|".encode()


def words(digests: Digests) -> Words:
    """The same digests as one value each, for `np.unique`: void (n,)."""
    return np.ascontiguousarray(digests).view(f"V{UID_BYTES}").reshape(-1)


def places(wanted: Digests, among: Digests) -> npt.NDArray[np.int64]:
    """Where each wanted digest stands among the others, -1 where it does not: int64 (len(wanted),)."""
    # By the first 8 bytes, as numbers, which NumPy sorts ten times as fast; the rest is compared then.
    have, want = _first_halves(among), _first_halves(wanted)
    if len(want) * _FEW < len(have):
        # Few among many: what cannot be meant is sifted out first, by 22 of its bits, instead of sorting all.
        meant = np.zeros(1 << _SIFT_BITS, np.bool_)
        meant[want & _SIFT] = True
        may_be = np.flatnonzero(meant[have & _SIFT])
        if len(may_be) * 2 < len(have):
            place = places(wanted, among[may_be])
            return np.where(place >= 0, may_be[place] if len(may_be) else -1, -1)
    order = np.argsort(have)
    place = np.searchsorted(have, want, sorter=order)
    found = np.full(len(wanted), -1, np.int64)
    looking = np.arange(len(wanted))
    while (looking := looking[place[looking] < len(have)]).size:
        candidate = order[place[looking]]
        alike = have[candidate] == want[looking]
        looking, candidate = looking[alike], candidate[alike]
        same = (among[candidate] == wanted[looking]).all(axis=1)
        found[looking[same]] = candidate[same]
        looking = looking[~same]
        place[looking] += 1
    return found


def _first_halves(digests: Digests) -> npt.NDArray[np.uint64]:
    # A view of every second word: to copy the halves out first takes seven times as long as all that follows.
    return np.ascontiguousarray(digests).view("<u8")[:, 0]
