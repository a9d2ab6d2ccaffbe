"""Copies on the node's own disk: verified, found again, given up; and without them it only takes longer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool import files
from hpctool.data import access, stage
from hpctool.data.layout import Layout
from hpctool.data.prepare import Prepared
from hpctool.data.reader import Reader
from hpctool.data.version import Version, open_version
from hpctool.errors import ConfigError, CorruptError
from hpctool.place import Place
from hpctool.world import World
from tests.conftest import Spawn

COLUMNS, SPLITS = ["image", "label"], ["train", "val"]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's own disk."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


@pytest.fixture(autouse=True)
def small_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_MARGIN_BYTES", 1 << 20)


def staged(version: Version, node: Path, world: World | None = None, **options: Any) -> str:
    return stage.stage(version, COLUMNS, SPLITS, str(node), world or World(), **options)


def home_of(node: Path) -> Path:
    return node / f"hpctool-stage-{os.getuid()}"


def copies(node: Path) -> list[Path]:
    return sorted(home_of(node).glob("objects/*/*"))


def image_path(version: Version, root: Path | None = None) -> Path:
    layout = version.store.layout if root is None else Layout(root)
    return layout.object(version.contents.row_groups[1].holder("image").id)


def test_what_was_staged_is_read_from_there(tiny: Version, node: Path) -> None:
    whole = tiny.read("image")
    assert f"in {home_of(node)}" in staged(tiny, node)
    for path in copies(node):
        assert path.stat().st_mode & 0o777 == 0o444
        (tiny.store.layout.object(path.stem)).unlink()
    for way in ("memmap", "pread"):
        found = Reader(tiny, COLUMNS, way).gather(np.arange(40))
        assert np.array_equal(found["image"], whole)


@pytest.mark.slow
def test_only_the_columns_and_row_groups_of_the_splits_are_copied(
    prepare_arrays: Callable[..., Prepared], datasets: Path, node: Path
) -> None:
    prepare_arrays("data.row_group_rows=1")
    version = open_version(datasets, "tiny")
    staged(version, node)
    rows = np.concatenate([version.split_rows(split) for split in SPLITS]).tolist()
    groups = [version.contents.row_groups[row] for row in rows]
    assert 0 < len(rows) < 40
    assert {path.stem for path in copies(node)} == {g.holder(name).id for g in groups for name in COLUMNS}


def test_a_second_staging_copies_nothing(tiny: Version, node: Path) -> None:
    staged(tiny, node)
    before = {path: path.stat().st_ino for path in copies(node)}
    said = staged(tiny, node)
    assert "0.00 GB copied" in said
    assert {path: path.stat().st_ino for path in copies(node)} == before


def test_a_copy_that_a_cleaner_took_is_read_from_the_original(tiny: Version, node: Path) -> None:
    staged(tiny, node)
    shutil.rmtree(home_of(node) / "objects")
    assert np.array_equal(Reader(tiny, ["image"]).gather(np.arange(40))["image"], tiny.read("image"))


def test_a_damaged_copy_is_made_anew(tiny: Version, node: Path) -> None:
    staged(tiny, node)
    path = image_path(tiny, home_of(node))
    flip(path)
    staged(tiny, node, checksums=False)
    assert files.sha256_file(path) != path.stem
    staged(tiny, node)
    assert files.sha256_file(path) == path.stem


def test_a_damaged_original_is_refused_and_leaves_no_copy(tiny: Version, node: Path) -> None:
    flip(image_path(tiny))
    with pytest.raises(CorruptError, match="do not fit its checksum"):
        staged(tiny, node)
    assert tiny.stage is None
    assert image_path(tiny).stem not in {path.stem for path in copies(node)}
    assert list(home_of(node).glob("tmp/*")) == []


def test_without_room_the_dataset_itself_is_read(tiny: Version, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_MARGIN_BYTES", 1 << 60)
    said = staged(tiny, node)
    assert said.startswith("not staged: ")
    assert "GB free and 1073741824.0 are needed" in said
    assert tiny.stage is None
    assert copies(node) == []


@pytest.mark.slow
def test_a_disk_that_fills_up_meanwhile_is_only_said(
    prepare_arrays: Callable[..., Prepared], datasets: Path, node: Path, small_files: int
) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[1], limits[1]))
    prepare_arrays(image=np.ones((40, 200), np.uint8), label=np.zeros(40, np.int64))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    version = open_version(datasets, "tiny")
    assert "not staged" in (said := staged(version, node))
    assert "File too large" in said
    assert version.stage is None
    assert list(home_of(node).glob("tmp/*")) == []


def test_a_folder_that_others_can_write_is_not_used(tiny: Version, node: Path) -> None:
    home_of(node).mkdir(mode=0o777)
    home_of(node).chmod(0o777)
    assert "can be written by others" in staged(tiny, node)
    home_of(node).rmdir()
    home_of(node).symlink_to(node)
    assert "can be written by others" in staged(tiny, node)


def test_auto_takes_a_disk_of_the_node_and_only_for_shared_data(
    tiny: Version, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", "/dev/shm")
    monkeypatch.setenv("TMPDIR", str(node))
    assert stage.stage(tiny, COLUMNS, SPLITS, "auto", World()) == ""
    tiny.access = "pread"
    assert str(node) in stage.stage(tiny, COLUMNS, SPLITS, "auto", World())
    monkeypatch.setattr(access, "_LOCAL", set())
    assert "is a disk of this node" in stage.stage(tiny, COLUMNS, SPLITS, "auto", World())


def test_a_variable_that_a_node_does_not_set_is_said(tiny: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVME_SCRATCH", raising=False)
    assert "$NVME_SCRATCH is not set on this node" in stage.stage(tiny, COLUMNS, SPLITS, "$NVME_SCRATCH", World())


@pytest.mark.parametrize("choice", ["False", "on", "scratch"])
def test_what_is_no_choice_is_refused(choice: str) -> None:
    with pytest.raises(ConfigError, match=r"Config 'data\.stage'"):
        stage.check_choice(choice)


def test_a_job_that_is_to_stop_does_not_wait_for_its_copies(tiny: Version, node: Path) -> None:
    assert "it was asked to stop" in staged(tiny, node, stopped=lambda: True)
    assert tiny.stage is None


def test_one_rank_of_a_node_copies_and_the_others_find_it(tiny: Version, node: Path) -> None:
    class OfTwoNodes(World):
        """Rank 1 of 3: rank 0 beside it, rank 2 alone on a node with a full disk."""

        def together(self, action: Callable[[], Any]) -> list[Any]:
            host = os.uname().nodename
            leader = {"host": host, "leads": True, "folder": str(node), "total_bytes": 1, "seconds": 1.0}
            full = {"host": "n2", "leads": True, "folder": None, "reason": "the disk is full"}
            return [leader, action(), full]

    said = staged(tiny, node, OfTwoNodes(Place(1, 3, 1, 2)))
    assert tiny.stage == node
    assert copies(node) == []
    assert said.endswith("; not on n2: the disk is full")


def test_old_stages_go_unless_somebody_reads_from_them(tiny: Version, node: Path) -> None:
    staged(tiny, node)
    (path,) = (home_of(node) / "lists").iterdir()
    stale = home_of(node) / "tmp" / "copy-of-a-killed-one"
    stale.touch()
    for old in (path, stale):
        os.utime(old, (1, 1))
    stage.clean(home_of(node))
    assert len(copies(node)) == 6
    assert not stale.exists()
    os.close(tiny.stage_lock or 0)
    stage.clean(home_of(node))
    assert copies(node) == []


@pytest.mark.slow
def test_a_killed_copier_leaves_nothing_that_could_be_taken_for_a_copy(tiny: Version, node: Path, spawn: Spawn) -> None:
    code = """
import sys, time
from pathlib import Path
from hpctool.data import stage
from hpctool.data.version import open_version
from hpctool.world import World
stage._PIECE_BYTES = 64
stage._THREADS = 2
stage._MARGIN_BYTES = 0
def slowly():
    time.sleep(0.01)
    return False
version = open_version(Path(sys.argv[1]), "tiny")
stage.stage(version, ["image", "label"], ["train", "val"], sys.argv[2], World(), stopped=slowly)
"""
    process = spawn(code, tiny.store.root.parent, node)
    while process.poll() is None and not copies(node):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(home_of(node).glob("tmp/*"))
    assert all(files.sha256_file(path) == path.stem for path in copies(node))
    assert "GB copied" in staged(tiny, node)
    assert len(copies(node)) == 6
    assert all(files.sha256_file(path) == path.stem for path in copies(node))


# A rank of two nodes with two each: real ranks, and a node is what calls itself so and has a disk of its own.
OF_FOUR = """
import json, os, sys
from pathlib import Path
datasets, node, rank, meeting, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5]
real = os.uname()
os.uname = lambda: os.uname_result((real.sysname, Path(node).name, *real[2:]))
os.environ["NODE_DISK"] = node
import numpy as np
from hpctool.data import stage
from hpctool.data.reader import Reader
from hpctool.data.verify import check_readable
from hpctool.data.version import open_together
from hpctool.errors import CorruptError
from hpctool.place import Place
from hpctool.world import TorchWorld
from tests.data.test_stage import flip
stage._MARGIN_BYTES = 1 << 20
world = TorchWorld(Place(rank, 4, rank % 2, 2, "test"), meeting)
version = open_together(datasets, "tiny", world)
said = stage.stage(version, ["image", "label"], ["train", "val"], "$NODE_DISK", world)
with Reader(version, ["label"]) as reader:
    found = reader.gather(version.split_rows("train"))["label"].tolist()
world.barrier()
if world.is_main:
    flip(Path(victim))
world.barrier()
try:
    world.together(lambda: check_readable(version, ["image"], checksums=True, rank=world.rank, size=world.size))
except CorruptError as error:
    said += " | " + str(error)
print(json.dumps([said, str(version.stage), found]))
world.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_of_two_nodes_has_its_copies_and_damage_that_one_rank_finds_stops_all(
    tiny: Version, tmp_path: Path, spawn: Spawn
) -> None:
    datasets, disks = tiny.store.root.parent, [tmp_path / "n0", tmp_path / "n1"]
    labels = tiny.read("label", tiny.split_rows("train")).tolist()
    victim = image_path(tiny)
    ranks = [spawn(OF_FOUR, datasets, disks[n // 2], n, tmp_path / "meeting", victim) for n in range(4)]
    said = [json.loads(rank.communicate(timeout=250)[0].splitlines()[-1]) for rank in ranks]
    assert [one[1] for one in said] == [str(home_of(disk)) for disk in disks for _ in range(2)]
    assert all(one[2] == labels for one in said)
    assert "on 2 nodes" in said[0][0]
    assert all(f"{victim} is damaged" in one[0] for one in said)
    assert [len(copies(disk)) for disk in disks] == [6, 6]


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
