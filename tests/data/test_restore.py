"""What is damaged comes back from a second copy, if that is whole; what is not whole never comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.commit import Draft
from hpctool.data.labels import relabel
from hpctool.data.restore import restore
from hpctool.data.verify import check_readable, verify
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError
from tests.data.harm import cut, flip


@pytest.fixture
def copied(tiny: Version, tmp_path: Path) -> tuple[Version, Path]:
    """A dataset with two commits and a tag, and a copy of it elsewhere."""
    tiny.store.create_tag("v1", tiny.commit)
    label = (int(tiny.read("label")[20]) + 1) % 4
    commit = relabel(tiny.store, "main", [(tiny.uids(np.array([20]))[0], label, "me", "", "t")], "look")
    shutil.copytree(tiny.store.root.parent, tmp_path / "second")
    return Version(tiny.store, "main", commit.id), tmp_path / "second"


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_all_that_is_damaged_is_mended(copied: tuple[Version, Path], harm: Callable[[Path], None]) -> None:
    version, second = copied
    paths = list(version.store.layout.addressed())
    paths += [version.store.layout.tags / "v1", version.store.head("main").path(2)]
    for path in paths:
        # A branch or tag that is gone without a trace is not known to have been there.
        (flip if harm is Path.unlink and "refs" in path.parts else harm)(path)
    done = restore(version.store, second)
    assert (len(done.mended), done.left) == (len(paths), [])
    assert verify(version.store, deep=True).damaged == []
    check_readable(open_version(version.store.root.parent, "tiny"))
    assert {oct(path.stat().st_mode & 0o777) for path in version.store.layout.addressed()} == {"0o444"}
    assert not list(version.store.layout.tmp.iterdir())


def test_a_copy_may_be_the_datasets_own_folder_and_not_the_dataset_itself(copied: tuple[Version, Path]) -> None:
    version, second = copied
    flip(version.store.layout.object(version.contents.splits.id))
    with pytest.raises(InputError, match="the dataset itself"):
        restore(version.store, version.store.root.parent)
    with pytest.raises(InputError, match="no copy of dataset 'tiny'"):
        restore(version.store, second / "tiny" / "refs")
    assert len(restore(version.store, second / "tiny").mended) == 1


def test_what_is_damaged_there_too_or_no_file_stays_away_and_is_said(copied: tuple[Version, Path]) -> None:
    version, second = copied
    layout = version.store.layout
    first, other, third = list(layout.addressed())[:3]
    for path in (first, other, third):
        path.unlink()
    theirs = [second / "tiny" / path.relative_to(layout.root) for path in (first, other, third)]
    flip(theirs[0])
    theirs[1].unlink()
    os.mkfifo(theirs[1])
    theirs[2].unlink()
    whys = {Path(damage.path): why for damage, why in restore(version.store, second).left}
    assert "is damaged, too" in whys[first]
    assert "is no file" in whys[other]
    assert "does not have it" in whys[third]
    assert not first.exists()


def test_an_entry_of_a_branch_that_went_another_way_is_not_taken(copied: tuple[Version, Path]) -> None:
    version, second = copied
    other = open_version(second, "tiny")
    strange = other.store.commit("main", lambda tip: _draft(other))
    (second / "tiny/refs/heads/main/0000000002").write_bytes(other.store.head("main").path(3).read_bytes())
    third = version.store.commit("main", lambda tip: _draft(version))
    flip(version.store.head("main").path(2))
    ((_, why),) = restore(version.store, second).left
    assert f"names {strange.id[:12]}, which is not of this branch" in why
    assert version.store.resolve("main") == third.id


def _draft(version: Version) -> Draft:
    return Draft(version.store.commit_of(version.commit).manifest, "again", {"kind": "test"})
