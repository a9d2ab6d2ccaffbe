"""`hpctool` itself: help by any name, and errors that say where and what to change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpctool.cli.main import cli


@pytest.mark.parametrize("words", [[], ["train"], ["data", "relabel"]])
def test_help_is_help_before_and_behind_the_command(words: list[str]) -> None:
    asked, flagged = CliRunner().invoke(cli, ["help", *words]), CliRunner().invoke(cli, [*words, "--help"])
    assert asked.exit_code == 0
    assert asked.stdout == flagged.stdout


def test_a_folder_that_cannot_be_written_is_named_with_what_chooses_another(tmp_path: Path) -> None:
    # Nobody may make a folder there, not even root.
    command = [sys.executable, "-m", "hpctool.cli.main", "prepare", "data.name=digits"]
    env = os.environ | {"HPCTOOL_ROOT": "/sys/kernel/hpctool"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/sys/kernel/hpctool. All of it is written below /sys/kernel/hpctool; HPCTOOL_ROOT=…" in done.stderr


@pytest.mark.slow
def test_a_folder_that_was_removed_under_ones_feet_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    command = (
        f"cd {folder} && rmdir {folder} && exec {sys.executable} -c 'from hpctool.cli.main import main; main()' runs"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    said = f"hpctool: {folder} has been removed while you stand in it. Change to a folder that is there.\n"
    assert (done.returncode, done.stderr) == (2, said)
