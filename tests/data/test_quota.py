"""At the end of a quota the kernel says EDQUOT, at any of many calls: a dataset is then as it was, and that is said.

The quota is a real one: of a subvolume of btrfs in a file, mounted by a loop device. That takes root and btrfs-progs;
this kind of quota binds root, too.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.store import Store, list_datasets
from hpctool.data.verify import verify
from hpctool.data.version import open_version
from tests.data.conftest import run_prepare, run_prepare_arrays
from tests.data.test_shared import set_label

BLOCK = 4096


class Quota:
    """A folder that may hold only so much."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def used(self) -> int:
        subprocess.run(["sync", "-f", str(self.folder)], check=True)
        shown = btrfs("qgroup", "show", "--raw", "-f", str(self.folder)).splitlines()[-1]
        return int(shown.split()[1])

    def limit(self, size_bytes: int | None) -> None:
        # Asked for through the folder above: what lies inside may change nothing any more.
        number = btrfs("inspect-internal", "rootid", str(self.folder)).strip()
        btrfs("qgroup", "limit", str(size_bytes or "none"), f"0/{number}", str(self.folder.parent))


def btrfs(*command: str) -> str:
    return subprocess.run(["btrfs", *command], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def quota(readable_folder: Path) -> Iterator[Quota]:
    """A subvolume of USER's with a quota, on a file system of its own."""
    if os.geteuid() != 0 or not shutil.which("mkfs.btrfs"):
        pytest.skip("a quota takes root and btrfs-progs")
    image, mounted = readable_folder / "image", readable_folder / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "--mixed", str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], capture_output=True).returncode:
        pytest.skip("a file system in a file cannot be mounted here")
    try:
        btrfs("subvolume", "create", str(mounted / "mine"))
        if subprocess.run(["btrfs", "quota", "enable", str(mounted)], capture_output=True).returncode:
            pytest.skip("this kernel's btrfs has no quotas")
        yield Quota(mounted / "mine")
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quota_that_ends_leaves_the_dataset_as_it_was(quota: Quota) -> None:
    root = quota.folder
    run_prepare_arrays(root)
    write_more(root)
    store = open_version(root / "datasets", "tiny").store
    source = ["source=npz", f"source.path={root / 'more.npz'}", "source.key=key"]
    actions: list[Callable[[], object]] = [
        lambda: set_label(root / "datasets", "main", 20, 1),
        lambda: run_prepare(root, "data.name=tiny", "data.append=true", *source),
        lambda: run_prepare(root, "data.name=other", *source),
    ]
    for action in actions:
        before, refused, room = tips(root), 0, 0
        while tips(root) == before:
            quota.limit(quota.used() + room)
            with contextlib.suppress(OSError) if room else pytest.raises(OSError, match="Disk quota exceeded"):
                action()
            quota.limit(None)
            refused += tips(root) == before
            assert verify(store, deep=True).damaged == []
            hidden = {path for path in (root / "datasets").rglob("*") if path.name.startswith(".")}
            assert all("tmp" in path.parts for path in hidden)
            room += 3 * BLOCK
        assert refused >= 2
        assert verify(store, deep=True).damaged == []


@pytest.mark.slow
def test_a_quota_that_has_ended_is_said_in_a_sentence(quota: Quota) -> None:
    root = quota.folder
    run_prepare_arrays(root)
    uid = open_version(root / "datasets", "tiny").uids(np.arange(1))[0]
    (root / "fixes.csv").write_text(f"uid,label\n{uid},3\n")
    before = tips(root)
    quota.limit(quota.used())
    command = ["data", "relabel", "tiny", "--from", str(root / "fixes.csv"), "-m", "look", "--root", str(root)]
    done = subprocess.run([sys.executable, "-m", "hpctool.cli.main", *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"hpctool: Disk quota exceeded: {root}/datasets/tiny/")
    assert "hpctool data gc" in done.stderr
    assert done.stderr.count("\n") == 1
    assert tips(root) == before


def write_more(root: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (400, 4, 4), np.uint8)
    np.savez(root / "more.npz", image=images, label=np.arange(400) % 4, key=np.arange(400) + 1000)


def tips(root: Path) -> dict[str, str]:
    """Dataset → the tip of its main branch."""
    stores = [Store.open(root / "datasets", name) for name in list_datasets(root / "datasets")]
    return {store.name: tip.id for store in stores if (tip := store.tip("main"))}
