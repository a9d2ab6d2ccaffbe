"""Nodes on which ranks could not begin are found by what was said of it, and only where the node is to blame."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpctool.launch.slurm import nostart

SAID = "srun: error: n3: tasks 2-3: Exited with exit code 1\nsrun: error: n1: tasks 0-1: Terminated\n"


@pytest.fixture(autouse=True)
def on_n1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n1")


def test_a_node_that_does_not_see_the_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").touch()
    log = f"2: hpctool: it does not see {tmp_path}/run.json; is the file system mounted?\n"
    assert nostart.find(SAID, log) == {"n3": f"it does not see {tmp_path}/run.json"}


def test_what_is_here_neither_is_no_fault_of_the_node(tmp_path: Path) -> None:
    log = f"2: hpctool: it does not see {tmp_path}/run.json; is the file system mounted?\n"
    assert nostart.find(SAID, log) == {}


def test_a_python_that_one_node_does_not_have_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    said = f" 3: slurmstepd-n3: error: execve(): {python}: No such file or directory\n{SAID}"
    assert nostart.find(said, "") == {"n3": f"it does not see {python}"}


def test_a_package_that_one_node_does_not_have_is_named() -> None:
    words = "Error while finding module specification for 'hpctool.launch.task' (ModuleNotFoundError: No module named"
    assert nostart.find(SAID, f"3: {words} 'hpctool')\n") == {"n3": "it does not see the package hpctool"}


@pytest.mark.parametrize(
    "log",
    [
        "2: ValueError: bad label\n",
        "0: hpctool: it does not see /; is the file system mounted?\n",
        "5: hpctool: it does not see /; is the file system mounted?\n",
    ],
)
def test_other_words_and_other_nodes_are_left_in_peace(log: str) -> None:
    assert nostart.find(SAID, log) == {}


def test_a_file_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.3, (tmp_path / "run.json").touch)
    late.start()
    assert nostart.sees(tmp_path / "run.json")
    late.join()


def test_what_a_rank_says_of_a_file_that_never_comes_is_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nostart, "_SEEN_S", 0.0)
    assert not nostart.sees(tmp_path / "run.json")
    said = capsys.readouterr().err
    (tmp_path / "run.json").touch()
    assert nostart.find(SAID, f"2: {said}") == {"n3": f"it does not see {tmp_path}/run.json"}
