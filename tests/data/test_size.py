"""The sizes of versions add up to what lies on the disk."""

from __future__ import annotations

import numpy as np

from hpctool.data.labels import relabel
from hpctool.data.size import size
from hpctool.data.version import Version


def test_a_relabelled_version_alone_needs_its_labels_and_what_says_so(tiny: Version) -> None:
    tiny.store.create_tag("v1", tiny.commit)
    label = (int(tiny.read("label")[20]) + 1) % 4
    commit = relabel(tiny.store, "main", [(tiny.uids(np.array([20]))[0], label, "me", "", "t")], "look")
    found = size(tiny.store)
    second, first = found.versions
    assert [(v.version, v.commit, v.num_rows) for v in (second, first)] == [
        ("main", commit.id, 40),
        ("v1", tiny.commit, 40),
    ]
    layout, now = tiny.store.layout, Version(tiny.store, "main", commit.id)
    assert commit.changes is not None
    own = [layout.object(now.contents.row_groups[1].holder("label").id), layout.object(commit.changes.id)]
    own += [layout.manifest(commit.manifest), layout.commit(commit.id)]
    assert second.unique_bytes == sum(path.stat().st_size for path in own)
    assert first.shared_bytes == second.shared_bytes
    assert found.size_bytes == first.unique_bytes + second.unique_bytes + first.shared_bytes
    assert (found.unneeded_files, found.trash_bytes, found.damaged) == (0, 0, [])
