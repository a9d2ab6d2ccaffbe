"""Many may write at once and nothing is lost; a name means one commit; what is newer or broken is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool import files
from hpctool.data.commit import Commit, Draft
from hpctool.data.gc import Keep, gc
from hpctool.data.labels import relabel
from hpctool.data.layout import FORMAT
from hpctool.data.merge import merge
from hpctool.data.prepare import Prepared
from hpctool.data.store import Store, list_datasets, short
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import ConflictError, CorruptError, InputError, NewerFormat, UnknownName
from tests.data.harm import age

Spawn = Callable[..., "subprocess.Popen[str]"]

# A writer: relabels the rows first, first + step, … of `tiny`, one commit each, and prints what was acknowledged.
WRITER = """
import sys
from pathlib import Path
from hpctool.data.labels import relabel
from hpctool.data.version import open_version
datasets, first, step, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
version = open_version(datasets, "tiny")
for number in range(count):
    row = (first + number * step) % version.num_rows
    uid = version.uids([row])[0]
    label = (int(open_version(datasets, "tiny").read("label", [row])[0]) + 1) % 4
    commit = relabel(version.store, "main", [(uid, label, "me", str(number), "now")], f"writer {first}")
    print(commit.id, flush=True)
"""


def draft(version: Version, message: str = "again") -> Draft:
    return Draft(version.store.commit_of(version.commit).manifest, message, {"kind": "test"})


@pytest.mark.slow
def test_a_commit_follows_the_tip_it_was_decided_from(tiny: Version) -> None:
    made = tiny.store.commit("main", lambda tip: draft(tiny))
    assert made.parents == [tiny.commit]
    tip = tiny.store.tip("main")
    assert tip is not None
    assert tip.id == made.id
    assert [commit.id for commit in tiny.store.history(made.id)] == [made.id, tiny.commit]


def test_whoever_comes_second_decides_again_from_what_the_first_did(tiny: Version) -> None:
    seen: list[str] = []

    def slow(tip: Commit | None) -> Draft:
        assert tip is not None
        seen.append(tip.id)
        if len(seen) == 1:
            tiny.store.commit("main", lambda tip: draft(tiny, "quick"))
        return draft(tiny, "slow")

    made = tiny.store.commit("main", slow)
    assert [commit.message for commit in tiny.store.history(made.id)][:2] == ["slow", "quick"]
    assert seen == [tiny.commit, made.parents[0]]


def test_a_refused_decision_leaves_the_branch_as_it_was(tiny: Version) -> None:
    def refuse(tip: Commit | None) -> Draft:
        raise ConflictError("it", "this", "that")

    with pytest.raises(ConflictError):
        tiny.store.commit("main", refuse)
    assert tiny.store.resolve("main") == tiny.commit


def test_a_name_means_a_branch_or_a_tag_or_the_beginning_of_a_commit(tiny: Version) -> None:
    store = tiny.store
    store.create_tag("v1", tiny.commit)
    store.create_branch("mine", tiny.commit)
    moved = store.commit("main", lambda tip: draft(tiny))
    assert store.resolve("main") == moved.id
    assert store.resolve("v1") == store.resolve("mine") == store.resolve(tiny.commit[:12]) == tiny.commit
    with pytest.raises(UnknownName, match="'v2'; there is: main, mine, v1"):
        store.resolve("v2")
    with pytest.raises(UnknownName):
        store.resolve("0000")


def test_a_tag_never_moves(tiny: Version) -> None:
    tiny.store.create_tag("v1", tiny.commit)
    tiny.store.create_tag("v1", tiny.commit)
    moved = tiny.store.commit("main", lambda tip: draft(tiny))
    with pytest.raises(InputError, match=f"names {short(tiny.commit)} and never moves"):
        tiny.store.create_tag("v1", moved.id)
    assert tiny.store.tags() == {"v1": tiny.commit}


def test_a_branch_and_a_tag_cannot_have_one_name(tiny: Version) -> None:
    tiny.store.create_tag("v1", tiny.commit)
    for taken in ("v1", "main"):
        with pytest.raises(InputError, match="already"):
            tiny.store.create_branch(taken, tiny.commit)
    with pytest.raises(InputError, match="already"):
        tiny.store.create_tag("main", tiny.commit)


def test_a_dataset_that_is_not_there_is_told_from_those_that_are(tiny: Version, datasets: Path) -> None:
    with pytest.raises(UnknownName, match="no dataset 'tinny'; there is: tiny"):
        Store.open(datasets, "tinny")
    assert list_datasets(datasets) == ["tiny"]
    assert list_datasets(datasets / "nowhere") == []


@pytest.mark.slow
def test_everything_works_without_hard_links(
    prepare_arrays: Callable[..., Prepared], datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    prepare_arrays("data.tag=v1")
    tiny = open_version(datasets, "tiny")
    store = tiny.store
    assert store.primitive == files.read_json(store.layout.format_file)["primitive"] == "symlink"
    store.create_branch("side", tiny.commit)
    for branch, row in (("main", 3), ("side", 20)):
        label = (int(tiny.read("label")[row]) + 1) % 4
        relabel(store, branch, [(tiny.uids(np.array([row]))[0], label, "me", "", "t")], "look")
    merged = merge(store, "main", open_version(datasets, "tiny@side"), tag="v2").commit
    store.delete_branch("side")
    assert store.resolve("main") == store.resolve("v2") == merged.id
    assert store.branches() == ["main"]
    age(store.root, 30)
    assert gc(store, delete=True, keep=Keep(0, 0, 0)).moved == {}
    assert verify(store, deep=True).damaged == []
    again = prepare_arrays("data.tag=v1")
    assert again.unchanged


@pytest.mark.parametrize("kind", ["dataset", "manifest", "commit"])
def test_what_a_newer_hpctool_wrote_is_refused(tiny: Version, datasets: Path, kind: str) -> None:
    store = tiny.store
    if kind == "dataset":
        record = files.read_json(store.layout.format_file)
        files.write_json(store.layout.format_file, record | {"format": FORMAT + 1})
    elif kind == "manifest":
        newer = store._put_json(store.layout.manifest, tiny.manifest | {"format": FORMAT + 1})
        store.commit("main", lambda tip: Draft(newer, "newer", {"kind": "test"}))
    else:
        newer = store._put_json(store.layout.commit, draft(tiny).to_json(tiny.commit) | {"format": FORMAT + 1})
        store.head("main").append({"commit": newer, "by": "", "time": ""})
    with pytest.raises(NewerFormat, match=f"is a {kind} of format {FORMAT + 1}; this hpctool reads up to {FORMAT}"):
        Version(Store.open(datasets, "tiny"), "main", Store.open(datasets, "tiny").resolve("main"))


def test_a_broken_tip_is_an_error_and_never_the_commit_before_it(tiny: Version) -> None:
    store = tiny.store
    store.commit("main", lambda tip: draft(tiny))
    path = store.head("main").path(2)
    path.write_bytes(path.read_bytes()[:-3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CorruptError, match=rf"tip of branch 'main' cannot be read\. .* {short(tiny.commit)}"):
            store.resolve("main")


def test_a_damaged_manifest_is_named(tiny: Version) -> None:
    path = tiny.store.layout.manifest(tiny.store.commit_of(tiny.commit).manifest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"train", b"trait"))
    with pytest.raises(CorruptError, match=f"{path.name} is damaged: its bytes do not fit its checksum"):
        Version(tiny.store, "main", tiny.commit)


@pytest.mark.parametrize(
    "wrong",
    [
        {"row_groups": [{"num_rows": 5}]},
        {"row_groups": [{"num_rows": 7, "objects": []}]},
        {"columns": {"x": {}}},
        {"splits": None},
        {"rule": {"fractions": [["elsewhere", 1.0]]}},
        {"format": "one"},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tiny: Version, wrong: dict[str, object]) -> None:
    made = tiny.store._put_json(tiny.store.layout.manifest, tiny.manifest | wrong)
    with pytest.raises(CorruptError, match="it is no manifest"):
        tiny.store.manifest(made)


def test_a_manifest_whose_array_ends_beyond_its_object_is_refused(tiny: Version) -> None:
    text = json.dumps(tiny.manifest)
    offset = tiny.contents.row_groups[0].holder("image").extents["image"].offset
    made = tiny.store._put_json(
        tiny.store.layout.manifest, json.loads(text.replace(f'"offset": {offset}', '"offset": 9999999'))
    )
    with pytest.raises(CorruptError, match="ends beyond"):
        tiny.store.manifest(made)


@pytest.mark.slow
def test_six_writers_of_one_branch_keep_all_their_commits(
    prepare_arrays: Callable[..., Prepared], datasets: Path, spawn: Spawn
) -> None:
    prepare_arrays(x=np.arange(120), label=np.arange(120) % 4)
    tiny = open_version(datasets, "tiny")
    writers = [spawn(WRITER, datasets, first, 6, 20) for first in range(6)]
    acknowledged = [line for writer in writers for line in writer.communicate(timeout=100)[0].split()]
    assert [writer.returncode for writer in writers] == [0] * 6
    history = [commit.id for commit in tiny.store.history(tiny.store.resolve("main"))]
    assert len(acknowledged) == len(set(acknowledged)) == 120
    assert set(history) == {*acknowledged, tiny.commit}
    assert len(history) == 121
    assert verify(tiny.store, deep=True).damaged == []


@pytest.mark.slow
def test_killed_writers_leave_nothing_half_visible(tiny: Version, datasets: Path, spawn: Spawn) -> None:
    random = np.random.default_rng(1)
    acknowledged: set[str] = set()
    for _ in range(6):
        writer = spawn(WRITER, datasets, 0, 1, 1000)
        assert writer.stdout is not None
        acknowledged.add(writer.stdout.readline().strip())
        time.sleep(random.uniform(0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged.update(writer.communicate()[0].split("\n")[:-1])
    history = {commit.id for commit in tiny.store.history(tiny.store.resolve("main"))}
    assert acknowledged <= history
    assert len(acknowledged) >= 6
    assert verify(tiny.store, deep=True).damaged == []
