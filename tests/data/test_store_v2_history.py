"""A store with merges, an ended branch, a run and its pin, written when these came; it goes on from store_v1."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from hpctool.data.exposure import exposures, runs_of
from hpctool.data.gc import Keep, gc
from hpctool.data.history import ancestors, graph, newest_first
from hpctool.data.labels import blame
from hpctool.data.merge import merge
from hpctool.data.usage import Order, pins
from hpctool.data.verify import verify
from hpctool.data.version import open_version

STORE = Path(__file__).parents[1] / "assets" / "store_v2_history"
TIP = "bc60756b7d841592e2db133a6d47e3b7522604042102ab303b069c11f77e33df"
LABEL = [0, 0, 1, 0, 0, 0, 0, 1, 0, -1, 1, 0, 1, -1]


def test_its_history_is_what_happened() -> None:
    version = open_version(STORE, "tiny@v3")
    store = version.store
    assert (version.commit, store.resolve("main"), store.branches()) == (TIP, TIP, ["main", "other", "side"])
    assert version.read("label").tolist() == LABEL
    assert version.split_rows("train").tolist() == [3, 6, 7, 8, 9, 10, 12, 13]
    assert version.contents.stats["splits"]["train"]["rows"] == 8
    commits = newest_first(ancestors(store, [TIP]).values())
    assert [commit.kind for commit in commits] == ["merge", "append", "relabel", "relabel", "relabel", "prepare"]
    assert [line.drawing for line in graph(commits)] == ["*", "├─┐", "│ *", "│ *", "* │", "├─┘", "*", "*"]
    uids = version.uids()
    said = {row: [(e.who, e.new) for e in blame(version, uids[row])] for row in (0, 1, 2, 12)}
    assert said[1] == [("ann@cluster", "cat"), ("import", "dog")]
    assert said[2] == [("bob@cluster", "dog"), ("import", "cat")]
    assert said[12] == [("cam@edge", "dog")]


def test_it_is_whole_and_knows_its_run() -> None:
    version = open_version(STORE, "tiny")
    assert verify(version.store, deep=True).damaged == []
    first, second = runs_of(version.store, TIP)
    assert {(use.run, use.split, use.order) for use in (first, second)} == {
        ("train-0123abcd", "train", Order(seed=7, window=0, global_batch_size=4, version=1)),
        ("train-0123abcd", "val", None),
    }
    (found,) = exposures(version.store, version.uids()[12])
    assert (found.label, found.steps) == ("dog", None)
    assert found.note.startswith("its order is of version 1")
    ((_, use, alive),) = pins(version.store, 2e12)
    assert (use.commit, alive) == (TIP, False)


def test_it_can_be_merged_and_collected(datasets: Path) -> None:
    shutil.copytree(STORE, datasets)
    version = open_version(datasets, "tiny@side")
    assert merge(version.store, "main", version).how == "unchanged"
    found = gc(version.store, delete=True, keep=Keep(-10, -10, -10))
    # What the ended branch alone needed: a commit, its manifest, its labels and its changes.
    assert {kind: count for kind, (count, _) in found.moved.items()} == {"objects": 2, "manifests": 1, "commits": 1}
    assert verify(version.store, deep=True).damaged == []
    assert np.array_equal(open_version(datasets, "tiny").read("label"), LABEL)
