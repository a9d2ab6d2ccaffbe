"""Gc takes what nothing needs, nothing else, and never what somebody is about to need."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data import order as orders
from hpctool.data import usage
from hpctool.data.commit import Commit, Draft
from hpctool.data.export import FORMATS, Job, export
from hpctool.data.exposure import exposures
from hpctool.data.gc import DAY_S, Keep, gc
from hpctool.data.labels import relabel
from hpctool.data.size import size
from hpctool.data.store import Store
from hpctool.data.usage import Order, begin_use, commits_in_use
from hpctool.data.verify import verify
from hpctool.data.version import Version
from hpctool.errors import CorruptError, OperationError
from hpctool.rundir import RunDir, create_run
from tests.data.harm import age, cut

NOW = Keep(young_s=0, trash_s=0, run_s=0)
TRASH = Keep(young_s=0, trash_s=DAY_S, run_s=0)


def look(version: Version, branch: str, row: int = 20, add: int = 1) -> Commit:
    label = (int(version.read("label")[row]) + add) % 4
    return relabel(version.store, branch, [(version.uids(np.array([row]))[0], label, "me", "", "t")], "look")


@pytest.fixture
def left(tiny: Version) -> tuple[Version, Commit]:
    """A dataset with a commit that its branch left behind when it was deleted; everything is old."""
    tiny.store.create_branch("side", tiny.commit)
    gone = look(tiny, "side")
    tiny.store.delete_branch("side")
    age(tiny.store.root, 30)
    return tiny, gone


def make_run(root: Path, commit: str, state: str) -> RunDir:
    inputs = [{"kind": "dataset", "name": "tiny@main", "id": commit}]
    run = create_run(root / "runs", {"identity": "ab" * 32, "job": "train", "name": "train", "inputs": inputs}, {})
    run.begin({"where": "here"})
    if state != "running":
        run.ledger.append({"kind": "ended", "attempt": 1, "state": state, "cause": "", "step": 7})
    return run


def test_a_dry_run_counts_and_changes_nothing(left: tuple[Version, Commit]) -> None:
    store = left[0].store
    before = sorted(os.walk(store.root))
    found = gc(store)
    # The commit, its manifest, its labels and its changes.
    assert {kind: count for kind, (count, _) in found.moved.items()} == {"objects": 2, "manifests": 1, "commits": 1}
    assert size(store).unneeded_files == 4
    assert sorted(os.walk(store.root)) == before


def test_what_nothing_needs_goes_to_the_trash_and_is_deleted_after_the_grace(left: tuple[Version, Commit]) -> None:
    version, gone = left
    store = version.store
    assert gc(store, delete=True, keep=TRASH).moved["objects"][0] == 2
    with pytest.raises(CorruptError, match="missing"):
        store.commit_of(gone.id)
    assert (size(store).unneeded_files, size(store).trash_bytes > 0) == (0, True)
    assert gc(store, delete=True, keep=TRASH).deleted_files == 0
    (trash,) = store.layout.trash.iterdir()
    trash.rename(trash.with_name("20200101T000000Z-01234567"))
    assert gc(store).deleted_files == 4
    assert gc(store, delete=True).deleted_files == 4
    assert not list(store.layout.trash.iterdir())
    assert verify(store, deep=True).damaged == []


def test_what_is_young_stays(left: tuple[Version, Commit]) -> None:
    store = left[0].store
    left[0].store.create_branch("side", left[0].commit)
    look(left[0], "side", row=3)
    store.delete_branch("side")
    found = gc(store, delete=True)
    assert (found.num_young, found.moved["objects"][0]) == (4, 2)


def test_a_tag_keeps_its_version(left: tuple[Version, Commit]) -> None:
    store = left[0].store
    store.create_tag("kept", left[1].id)
    assert gc(store, delete=True, keep=NOW).moved == {}


def test_a_run_keeps_its_version_while_it_lives_and_in_retention(left: tuple[Version, Commit], tmp_path: Path) -> None:
    version, gone = left
    store = version.store
    run = make_run(tmp_path, gone.id, "running")
    pin = begin_use(Version(store, "side", gone.id), run, "train", {"train": Order(0, 0, 8, 1)})
    assert pin is not None
    age(store.layout.runs, 365)
    assert gc(store, delete=True, keep=NOW).moved == {}
    pin.release()
    assert not list(store.layout.pins.iterdir())
    assert gc(store, keep=Keep(0, 0, 400 * DAY_S)).moved == {}
    assert gc(store, keep=Keep(0, 0, 90 * DAY_S)).moved["commits"][0] == 1
    # Before a run has begun it holds no pin, and is asked for by its own folder.
    assert commits_in_use(store, tmp_path / "runs") == [gone.id]
    assert gc(store, keep=NOW, more=commits_in_use(store, tmp_path / "runs")).moved == {}


def test_a_version_that_was_collected_after_its_run_is_no_damage(left: tuple[Version, Commit], tmp_path: Path) -> None:
    version, gone = left
    store = version.store
    pin = begin_use(Version(store, "side", gone.id), make_run(tmp_path, gone.id, "completed"), "train", {"train": None})
    assert pin is not None
    pin.release()
    assert gc(store, delete=True, keep=TRASH).moved["commits"][0] == 1
    # In retention again it is needed again, and still there to be taken back.
    assert gc(store, delete=True).num_taken_back == 4
    age(store.root, 30)
    assert gc(store, delete=True, keep=TRASH).moved["commits"][0] == 1
    for number, trash in enumerate(list(store.layout.trash.iterdir())):
        trash.rename(trash.with_name(f"20200101T000000Z-{number:08x}"))
    assert gc(store, delete=True, keep=TRASH).deleted_files == 4
    assert gc(store, keep=Keep(0, 0, 400 * DAY_S)).moved == {}
    assert verify(store).damaged == []
    # Whether it had a row cannot be said any more; the other runs' steps can.
    later = make_run(tmp_path / "later", version.commit, "completed")
    pin = begin_use(version, later, "train", {"train": Order(0, 0, 8, orders.VERSION)})
    assert pin is not None
    pin.release()
    row = int(version.split_rows("train")[0])
    first, second = exposures(store, version.uids(np.array([row]))[0])
    assert (first.commit, first.state, first.steps) == (gone.id, "completed", None)
    assert first.note.startswith("its version was collected")
    assert (second.run, second.steps is not None, second.note) == (later.id, True, "")


def test_a_sweep_keeps_what_its_cells_are_to_use(left: tuple[Version, Commit], tmp_path: Path) -> None:
    version, gone = left
    sweep = tmp_path / "runs" / "sweeps" / "train-0123abcd"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"cells": [{"data": {"commit": gone.id}}, {"id": "ab" * 32}]}))
    assert commits_in_use(version.store, tmp_path / "runs") == [gone.id]


def test_a_pin_is_renewed_while_its_holder_lives_and_comes_back(
    left: tuple[Version, Commit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_RENEW_S", 0.01)
    pin = begin_use(left[0], make_run(tmp_path, left[0].commit, "running"), "train", {"train": None})
    assert pin is not None
    os.utime(pin.path, (0, 0))
    wait_for(lambda: pin.path.stat().st_mtime > 0)
    pin.path.unlink()
    wait_for(pin.path.exists)
    pin.release()
    assert not pin.path.exists()


def test_an_export_holds_what_it_reads(
    left: tuple[Version, Commit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, gone = left
    side = Version(version.store, "side", gone.id)

    def collecting(job: Job, path: Path) -> None:
        # While it is written; a moment before and after nothing needs this version.
        gc(version.store, delete=True, keep=NOW)
        FORMATS["npz"](job, path)

    monkeypatch.setitem(FORMATS, "hdf5", collecting)
    assert export(side, tmp_path / "side.npz", "hdf5") == 40
    assert not list(version.store.layout.pins.iterdir())
    assert gc(version.store, delete=True, keep=NOW).moved["commits"][0] == 1


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pin_whose_holder_was_killed_runs_out(left: tuple[Version, Commit], tmp_path: Path) -> None:
    version, gone = left
    pin = begin_use(
        Version(version.store, "side", gone.id), make_run(tmp_path, gone.id, "failed"), "train", {"train": None}
    )
    assert pin is not None
    age(version.store.root, 1)
    found = gc(version.store, delete=True, keep=TRASH)
    assert (found.expired_pins, found.moved["commits"][0]) == (1, 1)
    assert not list(version.store.layout.pins.iterdir())
    pin.release()


def test_what_is_used_again_is_young_again(left: tuple[Version, Commit]) -> None:
    version, _ = left
    version.store.create_branch("again", version.commit)
    # The same labels as in what was left behind: nothing is written but the changes, the commit and its manifest.
    look(version, "again")
    assert gc(version.store, delete=True, keep=Keep(DAY_S, DAY_S, 0)).moved["commits"][0] == 1
    assert verify(version.store, deep=True).damaged == []


def test_a_writer_takes_back_what_was_collected_before_its_branch_moved(left: tuple[Version, Commit]) -> None:
    version, gone = left
    store = version.store
    manifest = gone.manifest

    def slow(tip: Commit | None) -> Draft:
        assert gc(store, delete=True, keep=TRASH).moved["manifests"][0] == 1
        return Draft(manifest, "again", {"kind": "test"})

    store.commit("main", slow)
    assert verify(store, deep=True).damaged == []


def test_gc_takes_back_what_became_needed_while_it_collected(
    left: tuple[Version, Commit], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, gone = left
    store = version.store
    rename = os.rename

    def moved(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(source).suffix == ".h5" and "new" not in store.tag_names():
            store.create_tag("new", gone.id)

    monkeypatch.setattr(os, "rename", moved)
    assert gc(store, delete=True, keep=TRASH).num_taken_back >= 1
    assert verify(store, deep=True).damaged == []


def test_the_next_gc_takes_back_what_is_needed_after_all(left: tuple[Version, Commit]) -> None:
    version, gone = left
    gc(version.store, delete=True, keep=TRASH)
    version.store.head("main").append({"commit": gone.id, "by": "", "time": ""})
    assert gc(version.store, delete=True, keep=TRASH).num_taken_back == 4
    assert verify(version.store, deep=True).damaged == []


def test_leftovers_of_killed_writers_go_and_what_a_name_points_at_stays(left: tuple[Version, Commit]) -> None:
    store = left[0].store
    for path in (store.layout.tmp / "h5-x", store.root / "objects" / ".d-x", store.root / ".e-x"):
        path.write_bytes(b"rest")
    (store.root / "FORMAT").rename(store.root / ".e-format")
    (store.root / "FORMAT").symlink_to(".e-format")
    age(store.root, 20)
    assert gc(store, delete=True).moved["leftovers"][0] == 3
    assert Store.open(store.root.parent, "tiny").branches() == ["main"]


@pytest.mark.parametrize("which", ["manifest", "commit"])
def test_nothing_is_collected_while_it_is_unknown_what_is_needed(left: tuple[Version, Commit], which: str) -> None:
    version, _ = left
    store = version.store
    paths: dict[str, Callable[[], Path]] = {
        "manifest": lambda: store.layout.manifest(store.commit_of(version.commit).manifest),
        "commit": lambda: store.layout.commit(version.commit),
    }
    cut(paths[which]())
    with pytest.raises(OperationError, match="What it needs is unknown, so nothing is collected"):
        gc(store, delete=True, keep=NOW)
    assert not store.layout.trash.exists()
