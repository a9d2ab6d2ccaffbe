"""How a program is told to stop, and that nothing of it gets lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpctool.rundir import RunDir
from tests.launch.programs import NOTE, Rank, are_gone, ended, hpctool, log, noted, of_script, submitted, until, write


@pytest.mark.slow
def test_the_rank_that_waits_is_light(here: Path, rank: Rank) -> None:
    run = of_script(here, "note('ready')\nwait()")
    process = rank(run)
    keeper_pid = int(Path(f"/proc/{noted(run, 'ready')}/stat").read_text().split()[3])
    assert "torch" not in Path(f"/proc/{process.pid}/maps").read_text()
    megabytes = [resident_mb(pid) for pid in (process.pid, keeper_pid)]
    assert megabytes[0] < 120, megabytes
    assert megabytes[1] < 25, megabytes


def resident_mb(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


# -- told to stop


COUNTS = """
    got = []
    def stop(number, frame):
        got.append(signal.Signals(number).name)
        note("got", json.dumps(got))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    note("ready")
    while not got:
        time.sleep(0.01)
    time.sleep(1)
    sys.exit({code})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "stop_signal", "cause"),
    [
        (signal.SIGTERM, "SIGTERM", "preempted"),
        (signal.SIGUSR2, "SIGTERM", "timeout"),
        (signal.SIGUSR2, "SIGUSR1", "timeout"),
    ],
)
def test_a_program_is_told_once_in_its_own_words(
    here: Path, rank: Rank, number: signal.Signals, stop_signal: str, cause: str
) -> None:
    run = of_script(here, COUNTS.format(code=75), f"stop_signal={stop_signal}")
    process = rank(run)
    noted(run, "ready")
    os.killpg(process.pid, number)
    assert process.wait() == 75
    assert noted(run, "got") == [stop_signal]
    assert (ended(run)["state"], ended(run)["cause"], ended(run)["saved"]) == ("requeued", cause, True)


@pytest.mark.slow
def test_a_signal_to_every_process_of_the_step_is_not_said_twice(here: Path, rank: Rank) -> None:
    run = of_script(here, COUNTS.format(code=75))
    process = rank(run)
    program_pid = noted(run, "ready")
    keeper_pid = int(Path(f"/proc/{program_pid}/stat").read_text().split()[3])
    for pid in (process.pid, keeper_pid, program_pid):
        os.kill(pid, signal.SIGTERM)
    assert process.wait() == 75
    assert noted(run, "got") == ["SIGTERM"]


@pytest.mark.slow
def test_the_word_for_the_time_limit_does_not_kill_a_program_that_does_not_know_it(here: Path, rank: Rank) -> None:
    run = of_script(here, "note('ready')\nwhile not os.path.exists('go'): time.sleep(0.01)")
    process = rank(run)
    os.kill(noted(run, "ready"), signal.SIGUSR2)
    time.sleep(0.2)
    (here / "go").touch()
    assert process.wait() == 0, log(run)


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1])
def test_a_program_that_stops_when_told_is_continued_whatever_it_says(here: Path, rank: Rank, code: int) -> None:
    run = of_script(here, COUNTS.format(code=code))
    process = rank(run)
    noted(run, "ready")
    process.terminate()
    assert process.wait() == 75
    assert (ended(run)["state"], ended(run).get("saved")) == ("requeued", None)


@pytest.mark.slow
def test_a_program_that_ignores_the_signal_and_finishes_is_done(here: Path, rank: Rank) -> None:
    run = of_script(here, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\ntime.sleep(1.5)")
    process = rank(run)
    noted(run, "ready")
    process.terminate()
    assert process.wait() == 0
    assert ended(run)["state"] == "completed"


@pytest.mark.slow
def test_a_program_that_ignores_the_signal_for_too_long_is_killed(here: Path, rank: Rank) -> None:
    run = of_script(here, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote('ready')\nwait()")
    process = rank(run)
    pid = noted(run, "ready")
    process.terminate()
    assert process.wait() == 75
    assert are_gone(pid)
    assert "cluster.kill_wait_s=2" in log(run)


@pytest.mark.slow
def test_what_a_shell_script_runs_is_told_too_and_may_save(here: Path, rank: Rank) -> None:
    write(
        here / "inner.py", NOTE + "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), note('saved'), sys.exit()))"
    )
    with open(here / "inner.py", "a") as file:
        file.write("\nnote('ready')\nwait()\n")
    write(here / "own.sh", f"#!/bin/bash\n{sys.executable} $HPCTOOL_CODE/inner.py\necho not reached", 0o755)
    run = submitted("script=own.sh")
    process = rank(run)
    pid = noted(run, "ready")
    process.terminate()
    assert process.wait() == 75
    assert noted(run, "saved") == pid
    assert are_gone(pid)


# -- nothing of it gets lost


DAEMON = """
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note("daemon")
        wait()
    while not os.path.exists(os.environ["HPCTOOL_RUN"] + "/artifacts/daemon"):
        time.sleep(0.01)
    note("ready")
"""


@pytest.mark.slow
def test_a_daemon_ends_with_the_program_that_left_it(here: Path, rank: Rank) -> None:
    run = of_script(here, DAEMON)
    assert rank(run).wait(60) == 0, log(run)
    assert are_gone(noted(run, "daemon"))


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_everything_with_it(here: Path, rank: Rank) -> None:
    run = of_script(here, f"{DAEMON}\n    wait()")
    process = rank(run)
    pids = noted(run, "ready", "daemon")
    os.killpg(process.pid, signal.SIGKILL)
    until(lambda: are_gone(*pids), timeout_s=10)


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["program", "keeper"])
def test_a_program_that_is_killed_takes_its_rank_with_it(here: Path, rank: Rank, whom: str) -> None:
    run = of_script(here, "note('ready')\nwait()")
    process = rank(run)
    pid = noted(run, "ready")
    keeper_pid = int(Path(f"/proc/{pid}/stat").read_text().split()[3])
    os.kill(pid if whom == "program" else keeper_pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert "own.py was killed by SIGKILL" in log(run)
    until(lambda: are_gone(pid, keeper_pid))


@pytest.mark.slow
def test_a_program_may_say_a_lot(here: Path, rank: Rank) -> None:
    run = of_script(here, "sys.stdout.write(('y' * 79 + '\\n') * 500_000)")
    assert rank(run).wait() == 0
    assert run.log(0, 1).stat().st_size == 40_000_000


@pytest.mark.slow
def test_at_a_terminal_its_words_are_shown_and_kept(here: Path) -> None:
    write(
        here / "own.py", "import sys; print('öut', flush=True); print('err', file=sys.stderr); print('x' * 9_000_000)"
    )
    done = hpctool("script=own.py", "--json")
    answer = json.loads(done.stdout)
    assert "öut\n" in done.stderr
    assert "err\n" in done.stderr
    assert len(log(RunDir(Path(answer["folder"])))) == 9_000_001 + len("öut\nerr\n")


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_reaches_the_program_as_ctrl_c(here: Path) -> None:
    write(
        here / "own.py", NOTE + "note('ready')\ntry:\n    wait()\nexcept KeyboardInterrupt:\n    print('saved by hand')"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hpctool.cli.main", "run", "script=own.py"], stdout=subprocess.PIPE, text=True
    )
    (path,) = until(lambda: list(here.glob("runs/run-*/artifacts/ready")))
    process.send_signal(signal.SIGINT)
    words, _ = process.communicate(timeout=60)
    run = RunDir(path.parent.parent)
    assert (process.returncode, run.story().state, "saved by hand" in words) == (130, "cancelled", True)
