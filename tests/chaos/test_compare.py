"""What counts as a difference between the run that was left in peace and the broken one."""

from __future__ import annotations

from pathlib import Path

from hpctool import files
from hpctool.chaos.compare import compare_artifacts
from hpctool.rundir import RunDir


def test_what_a_killed_writer_has_left_is_no_picture_but_every_other_byte_counts(tmp_path: Path) -> None:
    straight, broken = RunDir(tmp_path / "straight"), RunDir(tmp_path / "broken")
    for run in (straight, broken):
        run.path.mkdir()
        run.artifact("same.csv").write_text("1")
        run.artifact("other.csv").write_text(run.id)
    broken.artifact(files.temporary_name()).touch()
    broken.artifact("more.csv").touch()
    assert compare_artifacts(straight, broken) == ["more.csv", "other.csv"]
