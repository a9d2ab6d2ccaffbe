"""Logs: the last lines, and following a run to its end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpctool.errors import UnknownName
from hpctool.track import logs
from tests.track.samples import Sample


def text(path: Path, lines: int | None = None) -> str:
    return b"".join(logs.read(path, lines)).decode()


def test_the_last_lines_are_found_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_text("".join(f"line {n} {'x' * 90}\n" for n in range(5000)) + "torn")
    assert text(path, 2).split() == ["line", "4999", "x" * 90, "torn"]
    assert len(text(path, 3000).splitlines()) == 3000
    assert text(path, 99999) == text(path) == path.read_text()
    assert text(path, 0) == ""


def test_an_empty_log_has_no_last_lines(tmp_path: Path) -> None:
    (tmp_path / "0.log").touch()
    assert text(tmp_path / "0.log", 5) == ""


def test_the_newest_attempt_is_meant_and_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().say("one\n").say("other\n", rank=1).begin().say("two\n")
    assert text(logs.log_path(run.rundir)) == "two\n"
    assert text(logs.log_path(run.rundir, rank=1, attempt=1)) == "other\n"
    with pytest.raises(UnknownName, match=r"rank '1'; there is: 0\."):
        logs.log_path(run.rundir, rank=1)
    with pytest.raises(UnknownName, match=r"attempt '3'; there is: 1, 2\."):
        logs.log_path(run.rundir, attempt=3)


def test_following_shows_everything_through_a_requeue_and_ends_with_the_run(tmp_path: Path) -> None:
    run = Sample(tmp_path)
    said: list[str] = []
    seen: list[bytes] = []
    moved = threading.Event()

    def follow() -> None:
        for piece in logs.follow(run.rundir, say=said.append, poll_s=0.01):
            seen.append(piece)
            moved.set()

    def shown(words: bytes) -> bool:
        while words not in b"".join(seen):
            if not moved.wait(timeout=10):
                return False
            moved.clear()
        return True

    reader = threading.Thread(target=follow)
    reader.start()
    writer = Sample(tmp_path).submit().begin().say("first ")
    assert shown(b"first ")
    writer.say("words\n").end("requeued", "preempted")
    writer.begin().say("second\n")
    assert shown(b"second\n")
    writer.say("last\n").complete()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert b"".join(seen) == b"first words\nsecond\nlast\n"
    assert f"Attempt 2 of {run.id}:" in said


def test_following_an_old_attempt_ends_at_once(tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().say("one\n").begin()
    assert b"".join(logs.follow(run.rundir, attempt=1, say=print)) == b"one\n"
