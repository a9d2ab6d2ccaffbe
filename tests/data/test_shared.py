"""Two people of a group write to one dataset and a third may only read it; a disk that is full leaves it as it was."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.gc import Keep, gc
from hpctool.data.labels import relabel
from hpctool.data.merge import merge
from hpctool.data.usage import begin_use
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from tests.data.conftest import run_prepare_arrays
from tests.data.harm import age
from tests.data.test_gc import make_run

ANN, BOB, EVE = 61_001, 61_002, 61_003
GROUP = 61_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be somebody else")


def done_by(user: int, groups: list[int], umask: int, action: Callable[[], object]) -> None:
    """Do something in a process of another user."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.umask(umask)
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def set_label(datasets: Path, branch: str, row: int, add: int) -> None:
    version = open_version(datasets, f"tiny@{branch}")
    label = (int(version.read("label")[row]) + add) % 4
    relabel(version.store, branch, [(version.uids(np.array([row]))[0], label, "", "", "t")], "look")


@pytest.fixture
def shared(readable_folder: Path, tmp_path: Path) -> Path:
    """A folder of a group, which everybody may read."""
    # Whatever is imported late is imported now: the interpreter's own folder may be root's alone.
    run_prepare_arrays(tmp_path)
    version = open_version(tmp_path / "datasets", "tiny")
    version.store.create_branch("side", version.commit)
    set_label(tmp_path / "datasets", "side", 3, 1)
    set_label(tmp_path / "datasets", "main", 20, 1)
    merge(version.store, "main", open_version(tmp_path / "datasets", "tiny@side"))
    gc(version.store)
    time.strptime("2026", "%Y")
    root = readable_folder / "project"
    root.mkdir()
    os.chown(root, ANN, GROUP)
    root.chmod(0o2775)
    (root / "datasets").mkdir()
    os.chown(root / "datasets", ANN, GROUP)
    (root / "datasets").chmod(0o2775)
    return root


@pytest.mark.slow
@as_root
def test_two_of_a_group_write_whatever_their_umask_and_a_third_only_reads(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = shared / "datasets"
    done_by(ANN, [GROUP], 0o077, lambda: run_prepare_arrays(shared))

    def bob() -> None:
        version = open_version(datasets, "tiny")
        version.store.create_branch("side", version.commit)
        set_label(datasets, "side", 3, 1)
        set_label(datasets, "main", 20, 1)
        version.store.create_tag("bobs", version.store.resolve("side"))
        merge(version.store, "main", open_version(datasets, "tiny@side"))
        begin_use(version, make_run(shared / "bob", version.commit, "running"), "train", {"train": None})

    (shared / "bob").mkdir()
    os.chown(shared / "bob", BOB, BOB)
    done_by(BOB, [GROUP], 0o022, bob)

    def ann() -> None:
        set_label(datasets, "main", 30, 1)
        open_version(datasets, "tiny").store.delete_branch("side")

    done_by(ANN, [GROUP], 0o077, ann)

    def eve() -> None:
        version = open_version(datasets, "tiny")
        assert len(version.read("image")) == 40
        assert verify(version.store, deep=True).damaged == []
        before = version.store.resolve("main")
        with pytest.raises(PermissionError):
            set_label(datasets, "main", 5, 1)
        assert version.store.resolve("main") == before
        run = make_run(shared / "eve", version.commit, "running")
        assert begin_use(version, run, "train", {"train": None}) is None

    (shared / "eve").mkdir()
    os.chown(shared / "eve", EVE, EVE)
    done_by(EVE, [EVE], 0o022, eve)
    assert "so it does not record that this run uses" in capfd.readouterr().err

    for path in [datasets / "tiny", *(datasets / "tiny").rglob("*")]:
        status = path.lstat()
        assert status.st_gid == GROUP, path
        if path.is_dir():
            assert stat.S_IMODE(status.st_mode) == 0o2775, path
        else:
            assert status.st_mode & 0o044 == 0o044, path
            assert not status.st_mode & 0o022, path
    store = open_version(datasets, "tiny").store
    assert len({path.stat().st_uid for path in store.layout.addressed()}) == 2


@pytest.mark.slow
@as_root
def test_gc_of_one_and_commits_of_another_who_cannot_touch_each_others_files(shared: Path) -> None:
    datasets = shared / "datasets"

    def ann() -> None:
        run_prepare_arrays(shared)
        version = open_version(datasets, "tiny")
        version.store.create_branch("side", version.commit)
        set_label(datasets, "side", 3, 1)
        set_label(datasets, "side", 20, 1)
        version.store.delete_branch("side")
        age(datasets, 30)

    done_by(ANN, [GROUP], 0o022, ann)
    store = open_version(datasets, "tiny").store
    mine = {path for path in store.layout.addressed() if path.suffix == ".h5"}

    def bob() -> None:
        # The labels that Ann's side had: the object is hers, is old, and is needed again.
        set_label(datasets, "main", 3, 1)
        found = gc(open_version(datasets, "tiny").store, delete=True)
        assert (found.refused, found.moved["commits"][0]) == ([], 2)
        assert verify(open_version(datasets, "tiny").store, deep=True).damaged == []

    done_by(BOB, [GROUP], 0o022, bob)
    labels = store.layout.object(open_version(datasets, "tiny").contents.row_groups[0].holder("label").id)
    assert labels in mine
    assert labels.stat().st_uid == BOB
    done_by(ANN, [GROUP], 0o022, lambda: gc(store, delete=True, keep=Keep(0, 0, 0)))
    assert verify(store, deep=True).damaged == []
    assert not list(store.layout.trash.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_the_branch_where_it_was(small_disk: Path, tmp_path: Path) -> None:
    run_prepare_arrays(tmp_path)
    (tmp_path / "datasets").rename(tmp_path / "away")
    subprocess.run(["cp", "-a", str(tmp_path / "away"), str(small_disk / "datasets")], check=True)
    datasets = small_disk / "datasets"
    store = open_version(datasets, "tiny").store
    page = 4096
    failures = 0
    for num_pages in range(40):
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(page))
        os.truncate(filler, filler.stat().st_size - num_pages * page)
        before = store.resolve("main")
        with contextlib.suppress(OSError) if num_pages else pytest.raises(OSError, match="No space left"):
            set_label(datasets, "main", 20, 1)
        moved = store.resolve("main") != before
        failures += not moved
        filler.unlink()
        assert verify(store, deep=True).damaged == []
        hidden = [path for path in store.root.rglob("*") if path.name.startswith(".")]
        assert hidden == list(store.layout.tmp.iterdir()) == []
        if moved:
            break
    assert failures >= 3
    assert Version(store, "main", before).read("label")[20] != open_version(datasets, "tiny").read("label")[20]
