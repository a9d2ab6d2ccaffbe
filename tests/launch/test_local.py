from __future__ import annotations

import os
import pty
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpctool import files
from hpctool.errors import OperationError
from hpctool.launch import local
from tests.launch.conftest import COMMAND, Bench, MakeRun, notes
from tests.launch.programs import until

pytestmark = pytest.mark.slow  # whole commands and processes

SLEEPER = "begin(); note('from'); time.sleep(1.0); note('to'); end('completed')"
SUBMIT = f"""
import sys, time
from pathlib import Path
from hpctool.launch import local
ticket = local.Ticket(sys.argv[2], None, None, 1, None, 1.0, 2.0, 1, 1)
local.enqueue(Path(sys.argv[1]), [ticket], command={COMMAND!r})
print("queued", flush=True)
"""


@pytest.mark.slow
def test_runs_go_on_when_the_one_who_submitted_has_ended(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(SLEEPER)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", SUBMIT, bench.runs, run.id], check=True, timeout=20)
    assert time.monotonic() - began < 5.0
    bench.wait(run)
    assert run.story().state == "completed"


def test_runs_go_on_when_the_terminal_is_closed(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(SLEEPER)
    pid, terminal = pty.fork()
    if pid == 0:
        # As a terminal's program has it: tests started by nohup have it ignored, and hand that on.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", SUBMIT + "time.sleep(60)", str(bench.runs), run.id])
    until(lambda: notes(run))
    os.close(terminal)  # the kernel sends SIGHUP to the session
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGHUP
    bench.wait(run)
    assert run.story().state == "completed"


def test_a_thousand_tickets_are_queued_within_a_second(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); note('from'); time.sleep(60)")
    began = time.monotonic()
    bench.enqueue(*(bench.ticket(run if n == 0 else None, sweep="none", cell=n, max_parallel=1) for n in range(1000)))
    assert time.monotonic() - began < 1.0
    assert len(local.status(bench.runs)) == 1000
    assert sum(path.stat().st_size for path in bench.queue.inbox.folder.iterdir()) < 50_000
    assert local.cancel(bench.runs, "none")
    assert not local.wait(bench.runs, ["none"], timeout_s=10)


def test_each_submission_runs_with_the_environment_it_was_made_in(
    bench: Bench, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("begin(); note(os.environ['TOKEN']); end('completed')", f"toy{n}") for n in range(2)]
    for run, value in zip(runs, ("one", "two"), strict=True):
        monkeypatch.setenv("TOKEN", value)
        bench.enqueue(bench.ticket(run))
    kept = list(bench.queue.environ("").iterdir())
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    assert stat.S_IMODE(bench.queue.folder.stat().st_mode) == 0o700
    bench.wait(*runs)
    assert [notes(run)[0][2] for run in runs] == ["one", "two"]
    assert not list(bench.queue.environ("").iterdir())


def test_status_tells_what_runs_and_what_waits_in_order(bench: Bench, make_run: MakeRun) -> None:
    runs = [make_run("begin(); note('from'); time.sleep(60)", f"toy{n}") for n in range(2)]
    bench.enqueue(*(bench.ticket(run, max_parallel=1) for run in runs))
    until(lambda: notes(runs[0]))
    until(lambda: local.status(bench.runs)[0]["state"] == "running")
    first, second = local.status(bench.runs)
    assert (first["run"], first["state"]) == (runs[0].id, "running")
    assert (second["run"], second["state"], second["pids"]) == (runs[1].id, "queued", [])
    bench.kill_supervisor()
    os.kill(first["pids"][0], signal.SIGKILL)
    until(lambda: [row["state"] for row in local.status(bench.runs)] == ["queued", "queued"])
    for run in runs:
        assert local.cancel(bench.runs, run.id)
    bench.wait(*runs)


def test_waiting_ends_at_its_timeout_with_what_is_left(bench: Bench, make_run: MakeRun) -> None:
    run = make_run("begin(); time.sleep(60)")
    bench.enqueue(bench.ticket(run))
    assert local.wait(bench.runs, [run.id, "never-heard-of"], timeout_s=0.3) == [run.id]
    assert local.cancel(bench.runs, run.id)
    bench.wait(run)


def test_nothing_enqueued_starts_no_supervisor(bench: Bench) -> None:
    bench.enqueue()
    local.ensure_running(bench.runs)
    assert not bench.queue.folder.exists()
    assert local.status(bench.runs) == []
    assert not local.cancel(bench.runs, "toy")


def test_a_second_supervisor_is_never_started(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(SLEEPER)
    bench.enqueue(bench.ticket(run))
    assert bench.queue.lock() is None
    pid = until(bench.supervisor)
    for path in Path(f"/tmp/hpctool-{os.getuid()}").glob(f"{bench.queue.mark()}.lock"):
        path.unlink()  # somebody cleans /tmp
    local.ensure_running(bench.runs)
    bench.wait(run)
    assert bench.supervisor() == pid
    assert f"Another supervisor works here, pid {pid}" in bench.log()
    assert len(notes(run)) == 2


@pytest.mark.slow
def test_notes_that_are_lost_or_damaged_are_made_again_from_the_ledgers(bench: Bench, make_run: MakeRun) -> None:
    runs = [make_run(SLEEPER, f"toy{n}") for n in range(2)]
    bench.enqueue(*(bench.ticket(run, max_parallel=1) for run in runs))
    bench.wait(runs[0])
    bench.kill_supervisor()
    bench.queue.state_json.write_text("{")
    local.ensure_running(bench.runs)
    bench.wait(*runs)
    assert sum(text == "to" for _, _, text in notes(runs[0])) == 1
    assert runs[1].story().state == "completed"


@pytest.mark.slow
def test_a_supervisor_that_cannot_start_is_said_and_the_tickets_stay(bench: Bench, make_run: MakeRun) -> None:
    run = make_run(SLEEPER)
    bench.queue.make()
    bench.queue.log.mkdir()
    with pytest.raises(OSError, match="supervisor"):
        bench.enqueue(bench.ticket(run))
    bench.queue.log.rmdir()
    assert [row["run"] for row in local.status(bench.runs)] == [run.id]
    local.ensure_running(bench.runs)
    bench.wait(run)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")
def test_users_who_share_a_runs_folder_have_a_queue_each(readable_folder: Path) -> None:
    mine = local.Queue(readable_folder)
    mine.make()
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        theirs = local.Queue(readable_folder)
        theirs.make()
        alone = [q.folder for q in local._queues(readable_folder)] == [theirs.folder]
        os._exit(0 if alone and theirs.folder != mine.folder and not local.status(readable_folder) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [q.folder for q in local._queues(readable_folder)] == [mine.folder]


def test_locks_lie_in_no_folder_that_others_can_enter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.queue.make()
    folder = Path(f"/tmp/hpctool-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o755)
    try:
        with pytest.raises(OperationError, match="only you can enter"):
            bench.queue.lock()
    finally:
        folder.chmod(0o700)


def test_tickets_of_a_newer_format_are_refused_not_misread(bench: Bench) -> None:
    bench.queue.make()
    bench.queue.inbox.append({"kind": "enqueued", "format": 2})
    with pytest.raises(OperationError, match="Update hpctool"):
        local.status(bench.runs)


def test_ten_thousand_cells_make_one_small_entry(bench: Bench) -> None:
    tickets = [bench.ticket(sweep="s", cell=n) for n in range(10_000)]
    bench.queue.make()
    shared, own = local._packed([vars(ticket) for ticket in tickets])
    assert len(files.canonical_json(own)) < 200_000
    assert [local.Ticket(**shared, **one) for one in own] == tickets
