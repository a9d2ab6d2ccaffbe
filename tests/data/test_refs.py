"""A branch or tag whose commit is lost hides nothing else, comes back from a copy, or goes on from what is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hpctool.cli.main import cli
from hpctool.data.commit import Commit
from hpctool.data.describe import commit_entries
from hpctool.data.gc import gc
from hpctool.data.labels import relabel
from hpctool.data.refs import Tip, drop_tag, tags, tips
from hpctool.data.restore import restore
from hpctool.data.store import short
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import CorruptError, InputError, UnknownName


def change(version: Version, row: int) -> Commit:
    """One more commit on `side`."""
    label = (int(version.read("label")[row]) + 1) % 4
    return relabel(version.store, "side", [(version.uids(np.array([row]))[0], label, "me", "", "")], f"row {row}")


@pytest.fixture
def lost(tiny: Version, tmp_path: Path) -> list[Commit]:
    """Two commits on the branch `side`; the file of the second is gone, and `second/tiny` is a copy from before."""
    tiny.store.create_branch("side", tiny.commit)
    made = [change(tiny, 3), change(tiny, 9)]
    shutil.copytree(tiny.store.root, tmp_path / "second" / "tiny")
    tiny.store.layout.commit(made[1].id).unlink()
    return made


def test_a_lost_commit_hides_no_other_branch(tiny: Version, lost: list[Commit]) -> None:
    older, gone = lost
    assert tips(tiny.store) == [
        Tip("main", tiny.commit),
        Tip("side", gone.id, "its commit cannot be read: it is missing", older.id),
    ]
    assert [entry["commit"] for entry in commit_entries(tiny, everything=True)] == [tiny.commit]
    with pytest.raises(CorruptError, match=r"the tip of branch 'side'\. See: hpctool data restore tiny --from"):
        open_version(tiny.store.root.parent, "tiny@side")
    tiny.store.layout.manifest(older.manifest).unlink()
    assert tips(tiny.store)[1].whole == tiny.commit, "whole with its table of contents"
    (tiny.store.root / "refs/heads/side/0000000003").write_bytes(b"torn")
    with pytest.warns(UserWarning, match="0000000003"):
        found = tips(tiny.store)[1]
    assert (found.commit, found.whole) == ("", tiny.commit)
    assert "the tip of branch 'side' cannot be read" in found.problem


def test_a_lost_commit_comes_back_from_a_second_copy(tiny: Version, lost: list[Commit], tmp_path: Path) -> None:
    done = restore(tiny.store, tmp_path / "second")
    assert (done.mended, done.left) == ([str(tiny.store.layout.commit(lost[1].id))], [])
    assert tips(tiny.store)[1] == Tip("side", lost[1].id)
    assert change(tiny, 5).parents == [lost[1].id]


def test_a_branch_goes_on_from_a_commit_that_is_whole_and_nothing_needs_the_lost_one(
    tiny: Version, lost: list[Commit], tmp_path: Path
) -> None:
    older, gone = lost
    assert tiny.store.reset_branch("side", older.id) == gone.id
    assert verify(tiny.store).damaged == []
    assert gc(tiny.store, delete=True).num_needed > 0
    assert change(tiny, 5).parents == [older.id]
    with pytest.raises(UnknownName, match="no branch"):
        tiny.store.reset_branch("nowhere", older.id)
    # A new beginning that is torn comes back like any other entry, though the one before it is of another line.
    entry = tiny.store.root / "refs/heads/side/0000000004"
    shutil.copytree(tiny.store.root, tmp_path / "third" / "tiny")
    entry.chmod(0o644)
    entry.write_bytes(b"torn")
    done = restore(tiny.store, tmp_path / "third")
    assert str(entry) in done.mended
    assert [damage.path for damage in verify(tiny.store).damaged] == []


def test_a_tag_that_leads_nowhere_can_be_given_up_and_no_other(tiny: Version, lost: list[Commit]) -> None:
    older, gone = lost
    tiny.store.create_tag("v1", older.id)
    tiny.store.create_tag("v2", gone.id)
    assert tags(tiny.store) == [
        Tip("v1", older.id),
        Tip("v2", gone.id, "its commit cannot be read: it is missing"),
    ]
    assert [entry["refs"] for entry in commit_entries(tiny, everything=True)] == [["v1"], ["main"]]
    with pytest.raises(InputError, match="which is there; a tag is for ever"):
        drop_tag(tiny.store, "v1")
    assert drop_tag(tiny.store, "v2") == gone.id
    with pytest.raises(UnknownName, match="no tag of dataset 'tiny' called 'v2'"):
        drop_tag(tiny.store, "v2")
    tiny.store.reset_branch("side", older.id)
    assert verify(tiny.store).damaged == []


@pytest.mark.slow
def test_the_commands_name_what_is_lost_and_the_ways_out(tiny: Version, lost: list[Commit]) -> None:
    older, gone = lost
    root = tiny.store.root.parents[1]

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["data", *arguments, "--root", str(root)])

    way = f"hpctool data branch tiny@{short(older.id)} side --force"
    listed = run("branch", "tiny")
    assert listed.exit_code == 0
    assert f"{short(gone.id)}  its commit cannot be read: it is missing" in listed.stdout
    assert way in listed.stderr
    assert json.loads(run("branch", "tiny", "--json").stdout) == {"main": tiny.commit, "side": None}
    assert "tiny@side is left out" in run("log", "tiny", "--graph", "--all").stderr
    assert "say which" in str(run("branch", "tiny", "--force").exception)
    assert "already" in str(run(*way.split()[2:-1]).exception), "without --force nothing moves"
    said = f"tiny@side begins anew at commit {short(older.id)}; it was commit {short(gone.id)}."
    assert said in run(*way.split()[2:]).stderr
    assert run("log", "tiny@side").exit_code == 0
    tiny.store.create_tag("v2", gone.id)
    assert "hpctool data tag tiny --delete v2 gives it up" in run("tag", "tiny").stderr
    assert "tiny@v2 is gone; it was commit" in run("tag", "tiny", "--delete", "v2").stderr
    assert json.loads(run("tag", "tiny", "--json").stdout) == {}
