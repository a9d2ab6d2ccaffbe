"""Whatever is damaged is named, with the versions that need it; training refuses it with that sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.commit import Draft
from hpctool.data.labels import relabel
from hpctool.data.verify import check_readable, verify, verify_objects
from hpctool.data.version import Version
from hpctool.errors import CorruptError
from tests.data.harm import cut, flip


@pytest.fixture
def twice(tiny: Version) -> Version:
    """The version after one row of the second row group was relabelled; the one before is tagged v1."""
    tiny.store.create_tag("v1", tiny.commit)
    row = 20
    label = (int(tiny.read("label")[row]) + 1) % 4
    commit = relabel(tiny.store, "main", [(tiny.uids(np.array([row]))[0], label, "me", "", "")], "look")
    return Version(tiny.store, "main", commit.id)


def test_a_whole_store_is_whole(twice: Version) -> None:
    report = verify(twice.store, deep=True)
    assert report.damaged == []
    # Three row groups of three objects, the splits, the new labels and the changes.
    assert (report.num_commits, report.num_manifests, report.num_objects) == (2, 2, 12)
    check_readable(twice)


@pytest.mark.parametrize(
    ("harm", "problem", "seen_shallowly"),
    [(flip, "do not fit its checksum", False), (cut, "bytes instead of", True), (Path.unlink, "missing", True)],
)
def test_a_damaged_object_is_named_with_the_versions_that_need_it(
    twice: Version, harm: Callable[[Path], None], problem: str, seen_shallowly: bool
) -> None:
    shared = twice.store.layout.object(twice.contents.row_groups[0].holder("image").id)
    harm(shared)
    (found,) = verify(twice.store, deep=True).damaged
    assert found.path == str(shared)
    assert problem in found.problem
    assert sorted(found.versions) == ["tiny@main", "tiny@v1"]
    assert bool(verify(twice.store).damaged) == seen_shallowly


def test_an_object_of_one_version_touches_only_that(twice: Version) -> None:
    flip(twice.store.layout.object(twice.contents.row_groups[1].holder("label").id))
    (found,) = verify(twice.store, deep=True).damaged
    assert found.versions == ["tiny@main"]


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_training_refuses_a_damaged_object_that_it_would_read(twice: Version, harm: Callable[[Path], None]) -> None:
    path = twice.store.layout.object(twice.contents.row_groups[2].holder("image").id)
    harm(path)
    with pytest.raises(CorruptError, match=f"{path.name} is damaged: .* hpctool data verify tiny --deep"):
        check_readable(twice, ["image", "label"])
    check_readable(twice, ["label"])
    assert [damage.path for damage in verify_objects(twice)] == [str(path)]


def test_without_checksums_only_presence_and_size_are_checked(twice: Version) -> None:
    path = twice.store.layout.object(twice.contents.splits.id)
    flip(path)
    check_readable(twice, ["label"], checksums=False)
    cut(path)
    with pytest.raises(CorruptError, match=path.name):
        check_readable(twice, ["label"], checksums=False)


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_manifest_or_commit_is_named(twice: Version, harm: Callable[[Path], None]) -> None:
    store, old = twice.store, twice.store.read_tag("v1")
    manifest, commit = store.layout.manifest(store.commit_of(old).manifest), store.layout.commit(old)
    harm(manifest)
    assert [(d.path, d.versions) for d in verify(store).damaged] == [(str(manifest), ["tiny@v1"])]
    harm(commit)
    assert [(d.path, d.versions) for d in verify(store).damaged] == [(str(commit), ["tiny@v1"])]


def test_broken_refs_are_named(twice: Version) -> None:
    tag, head = twice.store.layout.tags / "v1", twice.store.head("main").path(2)
    for path in (tag, head):
        path.write_bytes(path.read_bytes()[:-4])
    found = {damage.path: damage.versions for damage in verify(twice.store).damaged}
    assert found == {str(tag): ["tiny@v1"], str(head): ["tiny@main"]}


def test_a_ref_that_points_nowhere_is_named(twice: Version) -> None:
    twice.store.head("main").append({"commit": "ab" * 32, "by": "", "time": ""})
    (found,) = verify(twice.store).damaged
    assert (found.path, found.problem) == (str(twice.store.layout.commit("ab" * 32)), "it is missing")
    assert found.versions == ["tiny@main"]


def test_an_offset_that_is_wrong_is_found_by_the_digest_of_values(twice: Version) -> None:
    stored = twice.contents.row_groups[0].holder("uid")
    wrong = stored.extents | {"content": replace(stored.extents["content"], offset=0)}
    twice.contents.row_groups[0] = twice.contents.row_groups[0].with_object(replace(stored, extents=wrong))
    manifest = twice.store.put_manifest(twice.contents)
    twice.store.commit("main", lambda tip: Draft(manifest, "wrong", {"kind": "test"}))
    (found,) = verify(twice.store, deep=True).damaged
    assert found.problem == "column 'content' does not lie where its manifest says"
    assert found.versions == ["tiny@main"]


def test_a_branch_whose_tip_is_lost_for_good_can_be_ended(twice: Version) -> None:
    store = twice.store
    store.create_branch("side", twice.commit)
    uid = twice.uids(np.array([9]))[0]
    lost = relabel(store, "side", [(uid, (int(twice.read("label")[9]) + 1) % 4, "me", "", "")], "look")
    store.layout.commit(lost.id).unlink()
    assert [found.versions for found in verify(store).damaged] == [["tiny@side"]]
    assert store.delete_branch("side") == lost.id
    assert verify(store).damaged == []
