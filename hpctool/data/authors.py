"""Authors: who set the labels of a version as they stand, counted from the changes that its commits carry."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hpctool.data.identity import places
from hpctool.data.labels import IMPORT
from hpctool.data.manifest import LABEL, NO_LABEL, UID
from hpctool.data.version import Version
from hpctool.errors import UnknownName


def label_authors(version: Version) -> dict[str, int]:
    """Author → how many of the version's labels are theirs, most first; rows without a label are nobody's."""
    return dict(Counter(author for author in _author_of_rows(version) if author).most_common())


def authored_rows(version: Version, author: str) -> list[str]:
    """The uids of the rows whose label is this author's, in order of row. Raises UnknownName."""
    authors = np.array(_author_of_rows(version), object)
    rows = np.flatnonzero(authors == author)
    if not rows.size:
        raise UnknownName(f"author of labels in {version.ref} called", author, sorted({*authors} - {""}))
    return version.uids(rows)


def _author_of_rows(version: Version) -> list[str]:
    """Each row's author, empty where there is no label."""
    if LABEL not in version.columns:
        return [""] * version.num_rows
    authors = np.full(version.num_rows, IMPORT, object)
    uids = version.read(UID)
    for commit in reversed(list(version.store.history(version.commit))):
        if commit.changes is not None:
            rows = places(version.store.get(commit.changes, UID), uids)
            said = version.store.get(commit.changes, "who")
            for row, who in zip(rows.tolist(), said.tolist(), strict=True):
                if row >= 0:
                    authors[row] = who.decode()
    authors[version.read(LABEL) == NO_LABEL] = ""
    return list(authors)
