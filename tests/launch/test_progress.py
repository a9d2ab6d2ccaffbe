"""How far a run is, from what it has written."""

from __future__ import annotations

import json
import time
from pathlib import Path

from hpctool.launch.progress import Progress, duration_text, progress
from tests.track.samples import Sample


def running(folder: Path, steps: list[tuple[int, float]], max_steps: int | None = 500) -> Sample:
    """A run whose newest attempt has logged steps at times (seconds of time.time())."""
    run = Sample(folder).begin()
    more = {} if max_steps is None else {"max_steps": max_steps}
    run.rundir.ledger.append({"kind": "resumed", "attempt": 1, "step": 0, **more})
    path = run.rundir.metrics()
    path.parent.mkdir()
    lines = [{"format": 1, "attempt": 1}, *({"s": step, "w": when, "m": {}} for step, when in steps)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_its_own_speed_says_how_long_it_still_takes(tmp_path: Path) -> None:
    run = running(tmp_path, [(100, 1000.0), (200, 1050.0), (300, 1100.0)])
    found = progress(run.rundir, run.rundir.story(), now_s=1100.0)
    assert found == Progress(300, 500, 100.0)
    assert str(found) == "300/500"
    assert progress(run.rundir, run.rundir.story(), now_s=1140.0).eta_s == 60.0
    assert progress(run.rundir, run.rundir.story(), now_s=9999.0).eta_s == 0.0


def test_without_a_number_of_steps_or_a_speed_nobody_knows(tmp_path: Path) -> None:
    run = running(tmp_path / "a", [(100, 1000.0), (200, 1050.0)], max_steps=None)
    assert progress(run.rundir, run.rundir.story(), time.time()) == Progress(200)
    run = running(tmp_path / "b", [(100, 1000.0)])
    assert progress(run.rundir, run.rundir.story(), time.time()) == Progress(100, 500)
    assert str(Progress(0)) == ""


def test_a_torn_line_or_no_metrics_are_no_trouble(tmp_path: Path) -> None:
    run = running(tmp_path, [(100, 1000.0), (200, 1050.0)])
    with open(run.rundir.metrics(), "a") as file:
        file.write('nonsense\n{"s": 300, "w"')
    assert progress(run.rundir, run.rundir.story(), 1050.0).step == 200
    run.rundir.metrics().unlink()
    assert progress(run.rundir, run.rundir.story(), 1050.0) == Progress(0, 500)


def test_what_has_ended_takes_no_time(tmp_path: Path) -> None:
    run = running(tmp_path, [(100, 1000.0), (200, 1050.0)]).end("failed", "no", 150)
    assert progress(run.rundir, run.rundir.story(), 1050.0) == Progress(150, 500)


def test_durations_are_said_in_their_largest_units() -> None:
    said = [duration_text(s) for s in (None, 4.24, 59, 192, 1000, 18_120, 400_000)]
    assert said == ["", "4.2 s", "59 s", "3 min 12 s", "16 min", "5 h 2 min", "4 d"]
