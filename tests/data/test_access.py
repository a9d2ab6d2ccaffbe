"""How bytes are read follows the file system, unless somebody decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctool.data import access
from hpctool.errors import ConfigError

MOUNTS = """\
21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
22 21 0:5 / /dev/shm rw - tmpfs tmpfs rw
40 21 0:40 / {root}/scratch rw,noatime shared:1 - lustre mgs@tcp:/scratch rw
41 40 0:41 / {root}/scratch/home\\040of\\040all rw master:3 - nfs4 server:/home rw
42 21 0:42 / {root}/wide rw - xfs /dev/vdb rw
43 42 0:43 / {root}/wide rw - fuse.sshfs sshfs rw
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS.replace("{root}", str(tmp_path)))
    monkeypatch.setattr(access, "_MOUNTS", path)
    return tmp_path


def test_the_longest_mount_point_that_holds_a_folder_counts(mounts: Path) -> None:
    assert access.file_system(mounts / "scratch" / "me") == "lustre"
    assert access.file_system(mounts / "scratch" / "home of all") == "nfs4"
    assert access.file_system(mounts / "scratches") == "ext4"
    assert access.file_system(mounts / "wide" / "data") == "fuse.sshfs"
    (mounts / "link").symlink_to(mounts / "scratch" / "me")
    assert access.file_system(mounts / "link") == "lustre"


def test_local_disks_are_mapped_and_everything_else_is_read_by_pread(mounts: Path) -> None:
    assert access.access_of(mounts) == access.access_of(Path("/dev/shm")) == "memmap"
    assert access.access_of(mounts / "scratch") == access.access_of(mounts / "wide") == "pread"
    assert access.access_of(mounts / "scratch", "memmap") == "memmap"
    assert access.access_of(mounts, "pread") == "pread"


def test_a_kernel_that_does_not_say_means_pread(mounts: Path) -> None:
    (mounts / "mountinfo").unlink()
    assert access.access_of(mounts) == "pread"


def test_another_word_is_refused(mounts: Path) -> None:
    with pytest.raises(ConfigError, match="'mmap' is not one of auto, memmap, pread"):
        access.access_of(mounts, "mmap")
