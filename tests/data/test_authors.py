"""Every label of a version has an author, and the authors can be counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpctool.data.append import Author, append
from hpctool.data.authors import authored_rows, label_authors
from hpctool.data.labels import relabel
from hpctool.data.version import Version, open_version
from hpctool.errors import UnknownName

WHEN = "2026-01-01T00:00:00Z"


def test_labels_of_the_import_are_counted_as_such(tiny: Version) -> None:
    assert label_authors(tiny) == {"import": 40}


def test_the_last_to_set_a_label_is_its_author_and_no_label_has_none(tiny: Version, datasets: Path) -> None:
    first = tiny.uids(np.arange(6))
    changes = [(uid, (int(tiny.read("label")[i]) + 1) % 4, "ann", "", WHEN) for i, uid in enumerate(first)]
    relabel(tiny.store, "main", changes, "one")
    relabel(tiny.store, "main", [(first[0], 3, "bob", "", WHEN), (first[1], -1, "bob", "", WHEN)], "two")
    images = np.random.default_rng(1).integers(0, 256, (2, 4, 4, 1), np.uint8)
    author = Author("oracle", WHEN, "review")
    append(tiny.store, "main", {"image": images}, ["a", "b"], np.array([1, -1], np.int64), [author] * 2, "three")
    after = open_version(datasets, "tiny")
    assert label_authors(after) == {"import": 34, "ann": 4, "bob": 1, "oracle": 1}
    assert authored_rows(after, "bob") == [first[0]]
    assert authored_rows(after, "ann") == first[2:]
    assert authored_rows(after, "oracle") == after.uids(np.array([40]))
    with pytest.raises(UnknownName, match="called 'annn'; there is: ann, bob, import, oracle"):
        authored_rows(after, "annn")
    assert label_authors(tiny) == {"import": 40}, "an older version still says what it said"
