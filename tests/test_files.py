"""What is on disk is whole or absent, and a name is given once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool import files
from hpctool.errors import CorruptError, OperationError
from hpctool.log import Log

Spawn = Callable[..., "subprocess.Popen[str]"]


PRIMITIVES: tuple[files.Primitive, ...] = ("link", "symlink")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# -- writing


def test_write_atomic_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "a long first text")
    files.write_atomic(path, b"short", mode=0o600)
    assert path.read_bytes() == b"short"
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, small_files: int) -> None:
    path = tmp_path / "a.txt"
    files.write_atomic(path, "old")
    with pytest.raises(OSError, match="File too large"):
        files.write_atomic(path, b"x" * (small_files + 1))
    with pytest.raises(OSError, match="File too large"):
        files.write_durably(tmp_path / "b.txt", b"x" * (small_files + 1))
    with pytest.raises(OSError, match="File too large"):
        files.create(tmp_path / "c.txt", b"x" * (small_files + 1))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_write_durably_never_touches_a_file_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write_durably(path, b"mine")
    with pytest.raises(FileExistsError):
        files.write_durably(path, b"other")
    assert path.read_bytes() == b"mine"


def test_write_durably_takes_any_kind_of_memory(tmp_path: Path) -> None:
    import numpy as np

    numbers = np.arange(6, dtype=np.float64).reshape(2, 3)
    files.write_durably(tmp_path / "a", numbers.data)
    assert (tmp_path / "a").read_bytes() == numbers.tobytes()


@pytest.mark.slow
def test_a_reader_never_sees_half_a_file_while_a_writer_is_killed(tmp_path: Path, spawn: Spawn) -> None:
    code = """
import sys; from pathlib import Path; from hpctool import files
path = Path(sys.argv[1]); n = 0
while True:
    files.write_json(path, {"n": n, "filler": ["x"] * 20000, "end": n}); n += 1
"""
    path = tmp_path / "state.json"
    seen: set[int] = set()
    for _ in range(4):
        writer = spawn(code, path)
        began = time.monotonic()
        while time.monotonic() - began < 0.4 or not path.exists() or len(seen) < 2:
            if path.exists():
                value = files.read_json(path)
                assert value["n"] == value["end"]
                seen.add(value["n"])
            assert writer.poll() is None, writer.communicate()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert files.read_json(path)["end"] >= 0
    assert len(seen) > 1


def test_json_that_nobody_could_read_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Log(tmp_path / "log").append({"loss": float("inf")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_json_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"a\.json is damaged: it is not JSON"):
        files.read_json(path)


def test_digests_are_those_of_the_standard_tools(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 1_000_000)
    said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert files.sha256_file(path) == said == files.sha256_bytes(path.read_bytes())
    assert files.crc32_hex(b"123456789") == "cbf43926"


def test_canonical_json_has_one_spelling() -> None:
    assert files.canonical_json({"b": [1, 2.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5]}'


# -- create if absent


def test_create_gives_a_name_once(tmp_path: Path, primitive: files.Primitive) -> None:
    path = tmp_path / "tag"
    assert files.create(path, b"first", primitive=primitive)
    assert not files.create(path, b"second", primitive=primitive)
    assert path.read_bytes() == b"first"
    assert len(names(tmp_path)) == (1 if primitive == "link" else 2)


def test_links_and_symbolic_links_exclude_each_other(tmp_path: Path) -> None:
    for mine, theirs in (PRIMITIVES, PRIMITIVES[::-1]):
        path = tmp_path / mine
        assert files.create(path, b"first", primitive=mine)
        assert not files.create(path, b"second", primitive=theirs)
        assert path.read_bytes() == b"first"


def test_a_folder_or_a_dead_link_takes_the_name_too(tmp_path: Path, primitive: files.Primitive) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "dead").symlink_to("nowhere")
    assert not files.create(tmp_path / "folder", b"x", primitive=primitive)
    assert not files.create(tmp_path / "dead", b"x", primitive=primitive)
    assert names(tmp_path) == ["dead", "folder"]


@pytest.mark.parametrize("error", [errno.EEXIST, errno.ETIMEDOUT])
def test_a_lost_reply_is_a_won_race(
    tmp_path: Path, primitive: files.Primitive, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = getattr(os, primitive)

    def loses_its_reply(source: object, target: object) -> None:
        honest(source, target)
        raise OSError(error, os.strerror(error))

    log = Log(tmp_path / "log", primitive)
    assert log.append({"n": 1}) == 1
    monkeypatch.setattr(os, primitive, loses_its_reply)
    assert files.create(tmp_path / "tag", b"mine", primitive=primitive)
    assert log.append({"n": 2}) == 2
    assert log.cas({"n": 3}, after=2)
    assert (tmp_path / "tag").read_bytes() == b"mine"
    assert [e.body["n"] for e in Log(tmp_path / "log").entries()] == [1, 2, 3]


def test_a_link_that_times_out_and_was_not_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(source: object, target: object) -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "link", times_out)
    with pytest.raises(TimeoutError):
        files.create(tmp_path / "tag", b"mine")
    assert names(tmp_path) == []


def test_the_content_behind_a_symbolic_link_survives_an_error_that_comes_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, "symlink")

    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, "the folder could not be synced")

    monkeypatch.setattr("hpctool.log.fsync_dir", fails)
    with pytest.raises(OSError, match="could not be synced"):
        log.append({"n": 1})
    assert [e.body for e in Log(tmp_path).entries()] == [{"n": 1}]


def test_symbolic_links_are_used_where_hard_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(source: object, target: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    assert files.probe(tmp_path) == "link"
    monkeypatch.setattr(os, "link", refuses)
    assert files.probe(tmp_path) == "symlink"
    assert files.create(tmp_path / "tag", b"x")
    assert (tmp_path / "tag").is_symlink()
    with pytest.raises(PermissionError):
        files.create(tmp_path / "other", b"x", primitive="link")
    monkeypatch.setattr(os, "symlink", refuses)
    with pytest.raises(OperationError, match=r"neither a hard link nor a symbolic link.*another file system"):
        files.probe(tmp_path)
    assert len(names(tmp_path)) == 2  # the tag and what it points at


def test_the_probe_says_that_the_disk_is_full_when_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        files.probe(tmp_path)
    assert names(tmp_path) == []
