"""Preparing again commits what is new and says what is there; beside another prepare it takes nothing from it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from hpctool import config
from hpctool.data.commit import Draft
from hpctool.data.labels import relabel
from hpctool.data.prepare import Prepared, prepare, resolve
from hpctool.data.schema import PrepareConfig
from hpctool.data.version import open_version
from hpctool.errors import InputError, SourceError, UnknownName
from hpctool.world import World

Run = Callable[..., Prepared]


def asked(root: Path, *overrides: str) -> DictConfig:
    """What the job of a prepare is given."""
    composed = config.compose("prepare", [f"paths.root={root}", *overrides])
    return config.resolved(config.typed(composed.cfg, PrepareConfig))


@pytest.mark.slow
def test_preparing_again_changes_nothing_and_says_so(
    prepare_arrays: Run, datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare_arrays("data.tag=v1")
    files = sorted(path for path in datasets.rglob("*"))
    again = prepare_arrays("data.tag=v1")
    assert (again.commit, again.unchanged) == (first.commit, True)
    assert "tiny@main: unchanged, it holds 40 rows" in capsys.readouterr().out
    assert sorted(path for path in datasets.rglob("*")) == files


@pytest.mark.slow
def test_what_was_prepared_and_then_relabelled_is_still_there(prepare_arrays: Run, datasets: Path) -> None:
    first = prepare_arrays()
    version = open_version(datasets, "tiny")
    uid, label = version.uids(np.array([0]))[0], int(version.read("label")[0])
    fixed = relabel(version.store, "main", [(uid, (label + 1) % 4, "me", "", "")], "look")
    assert prepare_arrays().commit == first.commit
    with pytest.raises(InputError, match="would lose the new labels"):
        prepare_arrays(image=np.zeros((3, 4, 4), np.uint8), label=np.arange(3))
    assert open_version(datasets, "tiny").commit == fixed.id


@pytest.mark.slow
def test_going_back_to_earlier_data_is_a_version_of_its_own(
    prepare_arrays: Run, datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare_arrays()
    prepare_arrays(image=np.zeros((3, 4, 4), np.uint8), label=np.arange(3))
    capsys.readouterr()
    back = prepare_arrays("data.tag=back")
    assert not back.unchanged
    assert "tiny@main: has now 40 rows" in capsys.readouterr().out
    now, before = open_version(datasets, "tiny@back"), open_version(datasets, f"tiny@{first.commit[:12]}")
    assert (now.commit, now.contents) == (back.commit, before.contents)
    assert open_version(datasets, "tiny").commit == back.commit
    assert prepare_arrays().commit == back.commit


@pytest.mark.slow
def test_a_tag_stays_where_it_is_when_the_same_data_become_another_version(prepare_arrays: Run, datasets: Path) -> None:
    first = prepare_arrays("data.tag=v1")
    prepare_arrays(image=np.zeros((3, 4, 4), np.uint8), label=np.arange(3))
    back = prepare_arrays("data.tag=v1")
    assert back.notes == [f"Tag 'v1' stays at commit {first.commit[:12]}, which holds the same."]
    assert open_version(datasets, "tiny").commit == back.commit != first.commit
    assert open_version(datasets, "tiny@v1").commit == first.commit


@pytest.mark.slow
def test_what_was_prepared_when_statistics_had_nine_digits_is_still_there(prepare_arrays: Run, datasets: Path) -> None:
    x = np.random.default_rng(0).normal(0, 1, (40, 3))
    prepare_arrays(x=x, label=np.arange(40) % 4)
    version = open_version(datasets, "tiny")
    text = json.dumps(version.manifest["stats"])
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.9g}"))
    older = version.store.put_manifest(replace(version.contents, stats=rounded))
    assert older != version.store.commit_of(version.commit).manifest
    made = version.store.commit("older", lambda tip: Draft(older, "prepare npz", {"kind": "prepare"}))
    version.store.create_tag("v1", made.id)
    again = prepare_arrays("data.name=tiny@older", "data.tag=v1", x=x, label=np.arange(40) % 4)
    assert (again.commit, again.unchanged) == (made.id, True)


@pytest.mark.slow
def test_what_was_labelled_since_is_said_where_the_source_is_the_same(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays()
    version = open_version(datasets, "tiny")
    uid, label = version.uids(np.array([0]))[0], int(version.read("label")[0])
    fixed = relabel(version.store, "main", [(uid, (label + 1) % 4, "me", "", "")], "look")
    again = prepare_arrays()
    assert again.unchanged
    assert again.notes == [f"tiny@main has gone on from there; it is at commit {fixed.id[:12]} ('look')."]


@pytest.mark.slow
def test_a_run_that_was_killed_behind_its_commit_finds_it_though_another_has_prepared_since(
    prepare_arrays: Run, datasets: Path, tmp_path: Path
) -> None:
    source = tmp_path / "first.npz"
    np.savez(source, image=np.ones((5, 4, 4), np.uint8), label=np.arange(5))
    cfg = asked(tmp_path, "data.name=tiny", "source=npz", f"source.path={source}")
    first = prepare(cfg, World(), run="prepare-1")
    later = prepare_arrays()
    again = prepare(cfg, World(), run="prepare-1")
    assert (again.commit, again.unchanged) == (first.commit, False)
    assert open_version(datasets, "tiny").commit == later.commit


@pytest.mark.slow
def test_a_grown_source_is_a_new_version_in_which_old_rows_stay_in_their_splits(
    prepare_arrays: Run, datasets: Path
) -> None:
    x = np.arange(300, dtype=np.float32)
    old = prepare_arrays(x=x[:200], label=np.arange(200) % 3)
    new = prepare_arrays(x=x, label=np.arange(300) % 3)
    a, b = open_version(datasets, f"tiny@{old.commit[:12]}"), open_version(datasets, "tiny")
    assert (new.unchanged, b.num_rows) == (False, 300)
    rows = b.find(a.uids())
    splits = b.split_of_rows()
    assert [splits[row] for row in rows] == a.split_of_rows()


# Ends the branch that its rows are to come onto.
ENDING = """
from pathlib import Path
from hpctool.data.store import Store

class Ending:
    def __init__(self, datasets):
        self.datasets = datasets

    def __iter__(self):
        yield {"key": "a", "label": 0, "x": 1.0}
        store = Store.open(Path(self.datasets), "tiny")
        if "side" in store.branches():
            store.delete_branch("side")
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while it is read"])
def test_rows_for_a_branch_that_is_gone_are_refused_and_it_stays_gone(
    prepare_arrays: Run, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    monkeypatch.syspath_prepend(tmp_path)
    prepare_arrays(x=np.arange(9.0), label=np.arange(9) % 2)
    store = open_version(datasets, "tiny").store
    store.create_branch("side", store.resolve("main"))
    source = ["source=own", "source._target_=ending.Ending", f"+source.datasets={datasets}"]
    cfg = asked(tmp_path, "data.name=tiny@side", "data.append=true", *source)
    if when == "before":
        store.delete_branch("side")
    with pytest.raises(UnknownName, match="no branch of dataset 'tiny' called 'side'; there is: main"):
        prepare(cfg, World())
    assert store.branches() == ["main"]
    assert list(store.layout.tmp.iterdir()) == []


# `Slow` lists its source for as long as a prepare of `Bad`, which has made the dataset, is at it.
READERS = """
import threading
begun, listing, failed = threading.Event(), threading.Event(), threading.Event()

class Bad:
    def pieces(self):
        begun.set()
        return [0]

    def rows(self, piece):
        assert listing.wait(60)
        yield {"key": "a", "label": "a", "x": float("nan")}

class Slow:
    def pieces(self):
        listing.set()
        assert failed.wait(60)
        return [0]

    def rows(self, piece):
        yield from ({"key": str(row), "label": "a", "x": row} for row in range(5))
"""


@pytest.mark.slow
def test_a_prepare_that_fails_leaves_the_new_dataset_to_one_that_still_lists_its_source(
    tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slowreaders.py").write_text(READERS)
    monkeypatch.syspath_prepend(tmp_path)
    readers = importlib.import_module("slowreaders")
    bad, slow = (
        asked(tmp_path, "data.name=new", "source=own", f"source._target_=slowreaders.{name}")
        for name in ("Bad", "Slow")
    )
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(lambda: readers.begun.wait(60) and prepare(slow, World()))
        with pytest.raises(SourceError, match="NaN"):
            prepare(bad, World())
        readers.failed.set()
        assert other.result().num_rows == 5
    version = open_version(datasets, "new")
    assert (version.num_rows, list(version.store.layout.tmp.iterdir())) == (5, [])


def test_the_digits_under_another_name_are_said_to_be_the_digits(tmp_path: Path) -> None:
    (said,) = resolve(asked(tmp_path, "data.name=faces")).notes
    assert "'faces' gets the handwritten digits of scikit-learn: source=digits" in said
    assert resolve(asked(tmp_path, "data.name=digits@mine")).notes == []
