"""A shell and stacks beside running ranks; real processes here, a stand-in srun for other hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpctool.errors import InputError, OperationError, SchedulerError, UnknownName
from hpctool.launch.result import own_process
from hpctool.launch.slurm import beside
from hpctool.rundir import RunDir
from tests.track.samples import Sample

Spawn = Callable[..., "subprocess.Popen[str]"]

RANK = """
import os, sys, time
from pathlib import Path
from hpctool.launch import signals, stacks
from hpctool.rundir import RunDir
signals.install()
rundir = RunDir(Path(sys.argv[1]), 1)
rundir.log(0).parent.mkdir(parents=True, exist_ok=True)
with stacks.answering(rundir, int(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(60)
"""


HPCTOOL = (sys.executable, "-c", "from hpctool.cli.main import main; main()")


def sample(folder: Path, **begun: object) -> RunDir:
    return Sample(folder / "runs").begin(**begun).rundir  # type: ignore[arg-type]


def start(spawn: Spawn, run: RunDir, rank: int, **options: object) -> subprocess.Popen[str]:
    process = spawn(RANK, run.path, rank, **options)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def elsewhere(run: RunDir, rank: int, node: str, job: str = "4711") -> None:
    """A rank on another host."""
    path = run.stacks(rank, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {**own_process(), "host": f"{node}.cluster", "node": node, "slurm_job": job}
    path.write_text(json.dumps(facts) + "\n")


def stand_in_srun(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    """An srun that writes its arguments down and does as it is told."""
    folder.mkdir()
    program = folder / "srun"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/arguments\n{text}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "arguments"


# -- stacks


@pytest.mark.slow
def test_ranks_here_are_asked_directly_and_those_that_have_not_begun_are_said(tmp_path: Path, spawn: Spawn) -> None:
    run = sample(tmp_path, world_size=3)
    for rank in (0, 2):
        start(spawn, run, rank)
    first, second, third = beside.stacks(run)
    assert "time.sleep" in first.text or "line " in first.text
    assert second.problem.startswith("it has not begun its work")
    assert third.text
    (only,) = beside.stacks(run, rank=2)
    assert only.rank == 2


@pytest.mark.slow
def test_ranks_elsewhere_are_asked_through_one_srun_for_all_nodes(
    tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample(tmp_path, world_size=4)
    start(spawn, run, 0)
    for rank, node in ((1, "n1"), (2, "n2"), (3, "n2")):
        elsewhere(run, rank, node)
    answers = []
    for rank in (3, 1):
        path = run.stacks(rank, 1)
        first = path.stat().st_size
        path.write_text(path.read_text() + f"at line {rank}\n")
        answers.append(json.dumps({"rank": rank, "start": first, "end": path.stat().st_size, "problem": ""}))
    said = stand_in_srun(tmp_path / "bin", monkeypatch, "\n".join(f"echo '{line}'" for line in ["noise", *answers]))
    found = beside.stacks(run)
    assert [one.rank for one in found] == [0, 1, 2, 3]
    assert [one.text for one in found][1:] == ["at line 1", "", "at line 3"]
    assert found[2].problem == "nothing was heard from n2.cluster"
    arguments = said.read_text().splitlines()
    assert {"--jobid=4711", "--overlap", "--nodelist=n1,n2", "--nodes=2", "--ntasks=2"} <= set(arguments)


def test_what_slurm_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample(tmp_path)
    elsewhere(run, 0, "n1")
    stand_in_srun(tmp_path / "bin", monkeypatch, "echo 'srun: error: Unable to create step: busy' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unable to create step: busy"):
        beside.stacks(run)


def test_a_run_that_does_not_run_has_no_stacks(tmp_path: Path) -> None:
    run = Sample(tmp_path / "runs").begin().end("failed", "rank 0: no").rundir
    with pytest.raises(InputError, match=r"is failed \(rank 0: no\): none of its ranks runs"):
        beside.stacks(run)


def test_a_run_whose_ranks_have_not_met_yet_says_where_its_log_is(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="hpctool runs logs"):
        beside.stacks(sample(tmp_path))


@pytest.mark.slow
def test_a_rank_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path, spawn: Spawn) -> None:
    run = sample(tmp_path, world_size=2)
    start(spawn, run, 0)
    with pytest.raises(UnknownName, match="there is: 0"):
        beside.stacks(run, rank=7)


def test_a_rank_on_another_host_without_slurm_is_for_its_user_to_reach(tmp_path: Path) -> None:
    run = sample(tmp_path)
    elsewhere(run, 0, "", "")
    with pytest.raises(OperationError, match="Log in there and type the same"):
        beside.stacks(run)


# -- shell


def call(run: RunDir, rank: int, *command: str) -> subprocess.CompletedProcess[str]:
    """`runs shell` as a process of its own: it becomes the shell."""
    words = [*HPCTOOL, "runs", "shell", "--root", str(run.path.parent.parent), run.id, "--rank", str(rank), *command]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_command_beside_a_rank_has_its_folder_and_environment_and_is_no_rank(tmp_path: Path, spawn: Spawn) -> None:
    run = sample(tmp_path, world_size=2)
    (tmp_path / "work").mkdir()
    more = {"CUDA_VISIBLE_DEVICES": "3", "RANK": "1", "SLURM_PROCID": "1", "SLURM_JOB_ID": "7", "LOADED": "gcc"}
    more |= {"HPCTOOL_LOCAL_QUEUE": "x", "MASTER_PORT": "1", "HPCTOOL_ROOT": "/data"}
    start(spawn, run, 1, cwd=tmp_path / "work", env={**os.environ, **more})
    answer = call(run, 1, "sh", "-c", "pwd; env")
    folder, *pairs = answer.stdout.splitlines()
    environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    assert folder == str(tmp_path / "work")
    assert {key: environ.get(key) for key in more} == {
        **{"CUDA_VISIBLE_DEVICES": "3", "LOADED": "gcc", "SLURM_JOB_ID": "7", "HPCTOOL_ROOT": "/data"},
        **dict.fromkeys(["RANK", "SLURM_PROCID", "HPCTOOL_LOCAL_QUEUE", "MASTER_PORT"]),
    }
    assert call(run, 1, "sh", "-c", "exit 7").returncode == 7


@pytest.mark.slow
def test_a_shell_without_a_terminal_is_refused(tmp_path: Path, spawn: Spawn) -> None:
    run = sample(tmp_path)
    start(spawn, run, 0)
    assert "A shell needs a terminal" in call(run, 0).stderr


@pytest.mark.slow
def test_a_rank_on_another_node_is_reached_by_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = sample(tmp_path)
    elsewhere(run, 0, "n3")
    said = stand_in_srun(tmp_path / "bin", monkeypatch, "exit 5")
    assert call(run, 0, "nvidia-smi", "-L").returncode == 5
    arguments = said.read_text().splitlines()
    assert {"--jobid=4711", "--overlap", "--nodelist=n3", "--nodes=1"} <= set(arguments)
    assert arguments[-4:] == ["1", "0", "nvidia-smi", "-L"]


@pytest.mark.slow
def test_a_person_at_a_terminal_gets_a_shell_that_says_where_it_is(tmp_path: Path, spawn: Spawn) -> None:
    run = sample(tmp_path)
    rank = start(spawn, run, 0)
    main, side = os.openpty()
    words = [*HPCTOOL, "runs", "shell", "--root", str(tmp_path), run.id]
    shell = subprocess.Popen(words, stdin=side, stdout=side, stderr=side, start_new_session=True)
    os.close(side)
    os.write(main, b"echo here=$PWD; exit 3\n")
    seen = b""
    deadline_s = time.monotonic() + 30
    while shell.poll() is None and time.monotonic() < deadline_s:
        try:
            seen += os.read(main, 4096)
        except OSError:
            break
    assert shell.wait(timeout=30) == 3
    os.close(main)
    text = seen.decode()
    assert f"beside rank 0 of {run.id}, process {rank.pid} on {socket.gethostname()}" in text
    assert f"here={os.getcwd()}" in text
