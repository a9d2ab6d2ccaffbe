"""Logs: the last lines, and following a run to its end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpctool.errors import UnknownName
from hpctool.track import logs
from tests.launch.slurm.stand_ins import StandIns
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


def test_a_job_that_died_before_our_python_began_shows_its_batch_log(slurm: StandIns, tmp_path: Path) -> None:
    slurm.says()
    slurm.says("42|FAILED|127:0", name="sacct")
    run = Sample(tmp_path)
    body = {"kind": "submitted", "where": "slurm", "slurm_job_id": "42", "time": "2026-01-01T00:00:00Z"}
    run.rundir.ledger.append(body)
    (run.rundir.path / "logs").mkdir()
    (run.rundir.path / "logs" / "42_0_log.out").write_text("conda: command not found\n")
    (run.rundir.path / "logs" / "43_0_log.out").write_text("of another job\n")
    said: list[str] = []
    assert b"".join(logs.follow(run.rundir, say=said.append)) == b"conda: command not found\n"
    assert said[-1] == f"{run.id} is failed: it ended with exit code 127 before it could say why"
    assert text(logs.log_path(run.rundir)) == "conda: command not found\n"


def test_a_rank_that_never_began_an_attempt_here_shows_its_first_words(tmp_path: Path) -> None:
    run = Sample(tmp_path).submit()
    (run.rundir.path / "logs").mkdir()
    (run.rundir.path / "logs" / "starting-0.log").write_text("no module named torch\n")
    assert text(logs.log_path(run.rundir)) == "no module named torch\n"


def test_following_says_how_it_ended_and_what_it_waited_for(slurm: StandIns, tmp_path: Path) -> None:
    run = Sample(tmp_path).begin().say("one\n").end("failed", "rank 0: ValueError: no")
    said: list[str] = []
    assert b"".join(logs.follow(run.rundir, say=said.append)) == b"one\n"
    assert said == [f"{run.id} is failed: rank 0: ValueError: no"]
