"""A log loses nothing: not by a broken entry, not in its packs, not on a full disk."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool import files
from hpctool.errors import NewerFormat
from hpctool.files import read_small
from hpctool.log import Entry, Log, _read_patiently, _sealed

GOLDEN = Path(__file__).with_name("assets") / "log_v1"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_entries_are_two_lines_that_people_can_read(tmp_path: Path, primitive: files.Primitive) -> None:
    log = Log(tmp_path, primitive)
    assert log.append({"kind": "begun", "attempt": 1}) == 1
    body, crc, end = log.path(1).read_text().split("\n")
    assert json.loads(body) == {"kind": "begun", "attempt": 1}
    assert crc == f"#crc32 {files.crc32_hex(body.encode())}"
    assert end == ""


def test_the_golden_log_of_format_1_is_read_and_still_written(tmp_path: Path) -> None:
    bodies = [
        {"kind": "begun", "attempt": 1, "node": "n1"},
        {"kind": "checkpoint", "attempt": 1, "step": 7, "loss": 0.25},
        {"kind": "ended", "attempt": 1, "cause": "é “quoted”\n"},
        {"kind": "begun", "attempt": 2, "node": None},
        {},
    ]
    assert Log(GOLDEN).entries() == [Entry(number, body) for number, body in enumerate(bodies, start=1)]
    log = SmallPacks(tmp_path)
    for body in bodies:
        log.append(body)
    written, golden = ({name: (folder / name).read_bytes() for name in names(folder)} for folder in (tmp_path, GOLDEN))
    assert written == golden


def test_an_entry_of_a_newer_format_is_refused_and_not_set_aside(tmp_path: Path) -> None:
    newer = b"what is to come\n#format 2 blake3 af1349b9\n"
    (filled(tmp_path, 4).folder / "pack-0000000001-0000000004").write_bytes(newer)
    reader = Log(tmp_path)
    assert numbers(reader) == [1, 2, 3, 4]  # a pack is only a shortcut
    reader.path(5).write_bytes(newer)
    for read in (reader.entries, reader.newest):
        with pytest.raises(NewerFormat, match=r"0000000005 is a log entry of format 2; this hpctool reads up to 1"):
            read()


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    assert (log.last(), log.newest(), log.entries()) == (0, None, [])
    assert not log.cas({}, after=3)
    assert not log.folder.exists()


def test_cas_refuses_what_was_decided_on_an_old_state(tmp_path: Path, primitive: files.Primitive) -> None:
    mine, theirs = Log(tmp_path, primitive), Log(tmp_path, primitive)
    assert mine.cas({"by": "me"}, after=0)
    assert not theirs.cas({"by": "them"}, after=0)
    assert theirs.cas({"by": "them"}, after=1)
    assert [e.body["by"] for e in mine.entries()] == ["me", "them"]
    newest = mine.newest()
    assert newest is not None
    assert (newest.number, newest.body["by"]) == (2, "them")


def test_cas_loses_politely_when_the_listing_was_old(tmp_path: Path, primitive: files.Primitive) -> None:
    class Stale(Log):
        def last(self) -> int:
            return min(super().last(), 1)

    Log(tmp_path, primitive).append({"n": 1})
    Log(tmp_path, primitive).append({"n": 2})
    stale = Stale(tmp_path, primitive)
    assert not stale.cas({"n": "x"}, after=1)
    assert stale.append({"n": 3}) == 3
    assert [e.body["n"] for e in Log(tmp_path).entries()] == [1, 2, 3]
    assert len(names(tmp_path)) == (3 if primitive == "link" else 6)


def test_what_was_appended_reads_back_as_it_lies_on_disk(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append({"pair": (1, 2), "text": "a\nb #crc32 é"})
    assert log.entries() == Log(tmp_path).entries()
    assert log.entries()[0].body["pair"] == [1, 2]


def replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


BREAKAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "flipped": lambda path: path.write_bytes(path.read_bytes().replace(b"2", b"3", 1)),
    "zeros": lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
    "not JSON": lambda path: path.write_bytes(_sealed(b"{nonsense\n")),
    "not an object": lambda path: path.write_bytes(_sealed(b"[1]\n")),
    "a folder": lambda path: replace(path, Path.mkdir),
    "points nowhere": lambda path: replace(path, lambda p: p.symlink_to("nowhere")),
    "points at itself": lambda path: replace(path, lambda p: p.symlink_to(p.name)),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_broken_entry_is_set_aside_by_name_and_the_others_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpctool.log._PATIENCE_S", 0.1)
    log = Log(tmp_path)
    for number in (1, 2, 3):
        log.append({"n": number})
    BREAKAGES[kind](log.path(2))
    reader = Log(tmp_path)
    with pytest.warns(UserWarning, match="set aside.*0000000002"):
        assert [e.body["n"] for e in reader.entries()] == [1, 3]
    assert list(reader.broken) == ["0000000002"]
    assert [e.body["n"] for e in reader.entries()] == [1, 3]  # said once
    with pytest.warns(UserWarning, match="set aside"):
        assert Log(tmp_path).entries(after=1)[0].body == {"n": 3}
    assert reader.append({"n": 4}) == 4


def test_the_newest_readable_entry_is_the_newest(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for number in (1, 2):
        log.append({"n": number})
    log.path(2).write_bytes(b"torn")
    reader = Log(tmp_path)
    with pytest.warns(UserWarning, match="set aside"):
        newest = reader.newest()
    assert newest == Entry(1, {"n": 1})
    assert reader.last() == 2
    assert not reader.cas({"n": "over the broken one"}, after=1)


def test_an_entry_that_becomes_readable_is_read(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append({"n": 1})
    whole = log.path(1).read_bytes()
    log.path(1).write_bytes(b"torn")
    reader = Log(tmp_path)
    with pytest.warns(UserWarning, match="set aside"):
        assert reader.entries() == []
    log.path(1).write_bytes(whole)
    assert reader.entries() == [Entry(1, {"n": 1})]
    assert reader.broken == {}


def test_a_process_out_of_files_does_not_take_entries_for_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Log(tmp_path).append({"n": 1})

    def out_of_files(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("hpctool.log.read_small", out_of_files)
    with pytest.raises(OSError, match="Too many open files"):
        Log(tmp_path).entries()


def test_a_listing_that_lacks_an_entry_hides_it_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path)
    for number in (1, 2, 3):
        log.append({"n": number})
    honest = os.listdir
    # As a kernel lists a large folder that grows meanwhile.
    monkeypatch.setattr("os.listdir", lambda folder: [name for name in honest(folder) if name != log.path(2).name])
    reader = Log(tmp_path)
    assert numbers(reader) == [1, 2, 3]
    assert numbers(Log(tmp_path), after=1) == [2, 3]
    assert not reader.broken


def test_entries_that_were_removed_are_told_and_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpctool.log._PATIENCE_S", 0.3)
    log = Log(tmp_path)
    for number in range(1, 13):
        log.append({"n": number})
    for number in range(2, 12):
        log.path(number).unlink()
    reader, began = Log(tmp_path), time.monotonic()
    with pytest.warns(UserWarning, match="set aside.*No such file"):
        assert numbers(reader) == [1, 12]
    assert time.monotonic() - began < 1.0
    assert len(reader.broken) == 10


@pytest.mark.slow
def test_reading_waits_for_a_file_that_was_listed_and_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry"
    honest, refusals = read_small, [errno.ENOENT, errno.ESTALE]
    path.write_bytes(b"here")

    def late(path: Path) -> bytes:
        if refusals:
            raise OSError(refusals.pop(), "late")
        return honest(path)

    monkeypatch.setattr("hpctool.log.read_small", late)
    assert _read_patiently(path) == b"here"


@pytest.mark.slow
def test_reading_does_not_wait_for_ever(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        _read_patiently(tmp_path / "never", patience_s=0.2)
    assert 0.1 < time.monotonic() - began < 2.0


# -- packs


class SmallPacks(Log):
    """The same log with packs that a test can fill."""

    PACKS = (4, 16)


def filled(folder: Path, count: int, primitive: files.Primitive | None = None) -> SmallPacks:
    log = SmallPacks(folder, primitive)
    for number in range(1, count + 1):
        log.append({"n": number})
    return log


def numbers(log: Log, after: int = 0) -> list[int]:
    return [e.body["n"] for e in log.entries(after)]


def test_packs_repeat_ranges_of_entries_in_two_sizes(tmp_path: Path, primitive: files.Primitive) -> None:
    filled(tmp_path, 21, primitive)
    packs = [name for name in names(tmp_path) if name.startswith("pack-")]
    ranges = [tuple(int(part) for part in name.split("-")[1:]) for name in packs]
    assert ranges == [(1, 4), (1, 16), (5, 8), (9, 12), (13, 16), (17, 20)]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    honest, seen = read_small, []

    def noting(path: Path) -> bytes:
        seen.append(path.name)
        return honest(path)

    monkeypatch.setattr("hpctool.log.read_small", noting)
    return seen


def test_a_long_log_is_read_from_its_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 21)
    seen = opened(monkeypatch)
    assert numbers(SmallPacks(tmp_path)) == list(range(1, 22))
    assert seen == ["pack-0000000001-0000000016", "pack-0000000017-0000000020", "0000000021"]


def test_the_newest_entry_of_a_long_log_costs_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 21)
    seen = opened(monkeypatch)
    newest = SmallPacks(tmp_path).newest()
    assert newest is not None
    assert newest.number == 21
    assert seen == ["0000000021"]


def test_a_reader_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = filled(tmp_path, 9), SmallPacks(tmp_path)
    assert len(reader.entries()) == 9
    writer.append({"n": 10})
    seen = opened(monkeypatch)
    assert numbers(reader, after=8) == [9, 10]
    assert seen == ["0000000010"]


@pytest.mark.parametrize("content", [b"", b"torn", b'{"n":1,"body":{"n":999}}\n#crc32 00000000\n'])
def test_a_broken_pack_is_gone_around(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path, 17)
    (tmp_path / "pack-0000000001-0000000016").write_bytes(content)
    assert numbers(SmallPacks(tmp_path)) == list(range(1, 18))
    (tmp_path / "pack-0000000001-0000000004").write_bytes(content)
    assert numbers(SmallPacks(tmp_path)) == list(range(1, 18))


def test_what_is_packed_survives_the_loss_of_its_entry(tmp_path: Path) -> None:
    log = filled(tmp_path, 8)
    log.path(3).write_bytes(b"torn")
    assert numbers(SmallPacks(tmp_path)) == list(range(1, 9))


def test_a_pack_leaves_out_what_is_broken_and_the_entry_is_still_said(tmp_path: Path) -> None:
    log = filled(tmp_path, 3)
    log.path(2).write_bytes(b"torn")
    writer = SmallPacks(tmp_path)
    with pytest.warns(UserWarning, match="0000000002"):
        assert writer.append({"n": 4}) == 4
    with pytest.warns(UserWarning, match="0000000002"):
        assert numbers(SmallPacks(tmp_path)) == [1, 3, 4]


def test_a_pack_that_cannot_be_written_does_not_cost_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled(tmp_path, 3)

    def full(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "create", full)
    assert log.append({"n": 4}) == 4
    assert numbers(SmallPacks(tmp_path)) == [1, 2, 3, 4]


def test_leftovers_of_the_dead_are_swept_after_a_day_and_nothing_else(
    tmp_path: Path, primitive: files.Primitive
) -> None:
    log = filled(tmp_path, 3, primitive)
    old, new = tmp_path / ".e-dead-1-aa", tmp_path / ".e-alive-2-bb"
    for path in (old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - 90_000
    for name in names(tmp_path):
        if name != new.name:
            os.utime(tmp_path / name, (yesterday, yesterday))
    log.append({"n": 4})
    assert not old.exists()
    assert new.exists()
    assert numbers(Log(tmp_path)) == [1, 2, 3, 4]


# -- full disks, read-only folders


def test_a_full_disk_refuses_an_entry_and_leaves_the_log_as_it_was(
    tmp_path: Path, primitive: files.Primitive, small_files: int
) -> None:
    log = Log(tmp_path, primitive)
    log.append({"n": 1})
    before = names(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="File too large"):
            log.append({"n": "x" * small_files})
        with pytest.raises(OSError, match="File too large"):
            log.cas({"n": "x" * small_files}, after=1)
    assert names(tmp_path) == before
    assert log.append({"n": 2}) == 2
    assert numbers(Log(tmp_path)) == [1, 2]


def test_a_read_only_log_can_be_read_and_says_so_when_written(unprivileged: Path) -> None:
    folder = unprivileged / "log"
    filled(folder, 6)
    folder.chmod(0o555)
    assert numbers(SmallPacks(folder)) == [1, 2, 3, 4, 5, 6]
    for write in (lambda: Log(folder).append({"n": 7}), lambda: files.write_atomic(folder / "a", "x")):
        with pytest.raises(PermissionError):
            write()
    with pytest.raises(PermissionError):
        files.probe(folder)
    assert numbers(Log(folder)) == [1, 2, 3, 4, 5, 6]


def test_an_entry_that_may_not_be_read_is_set_aside(unprivileged: Path) -> None:
    log = Log(unprivileged / "log")
    for number in (1, 2):
        log.append({"n": number})
    log.path(1).chmod(0)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert numbers(Log(log.folder)) == [2]
