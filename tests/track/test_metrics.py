"""Metrics: one curve out of many attempts, nothing twice, nothing lost that was flushed."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpctool.errors import InputError, NewerFormat
from hpctool.rundir import RunDir, create_run
from hpctool.track import metrics
from hpctool.track.metrics import MetricWriter, from_json, read_last, read_metrics, reported, summary
from hpctool.world import FakeWorld, World
from tests.track.samples import Sample

CONFIG = "name: train\nseed: 0\noptim:\n  lr: 0.01\ntrack:\n  tensorboard: false\n  every_steps: 10\n"


def make_run(tmp_path: Path, identity: str = "ab" * 32) -> RunDir:
    return create_run(
        tmp_path / "runs", {"identity": identity, "job": "train", "name": "train"}, {"config.yaml": CONFIG}
    )


def attempt(run: RunDir, number: int, resumed: int | None, steps: range) -> None:
    """An attempt that logs its own number at each of its steps."""
    run.ledger.append({"kind": "begun", "attempt": number, "step": 0})
    if resumed is not None:
        run.ledger.append({"kind": "resumed", "attempt": number, "step": resumed})
    with MetricWriter(RunDir(run.path, number), World()) as writer:
        for step in steps:
            writer.log(step, {"attempt": number})


def test_an_attempt_is_cut_where_the_next_one_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, None, range(100, 901, 100))
    attempt(run, 2, 500, range(600, 1001, 100))
    expected = [(s, 1.0) for s in range(100, 501, 100)] + [(s, 2.0) for s in range(600, 1001, 100)]
    assert read_metrics(run)["attempt"] == expected
    assert read_last(run)["attempt"] == (1000, 2.0)


def test_a_resume_from_further_back_cuts_every_attempt_before_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, 0, range(1, 10))
    attempt(run, 2, 6, range(7, 9))
    attempt(run, 3, 3, range(4, 6))
    assert read_metrics(run)["attempt"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 3.0), (5, 3.0)]
    assert read_last(run)["attempt"] == (5, 3.0)


def test_what_will_be_done_again_is_cut_before_the_new_attempt_has_logged_anything(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, 0, range(1, 10))
    run.ledger.append({"kind": "begun", "attempt": 2, "step": 0})
    assert read_metrics(run)["attempt"][-1] == (9, 1.0)
    run.ledger.append({"kind": "resumed", "attempt": 2, "step": 4})
    assert read_metrics(run)["attempt"][-1] == (4, 1.0)
    assert read_last(run)["attempt"] == (4, 1.0)


def test_an_attempt_that_does_not_say_where_it_resumed_replaces_from_its_first_step_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, None, range(0, 5))
    attempt(run, 2, None, range(0, 3))
    assert read_metrics(run)["attempt"] == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert read_last(run)["attempt"] == (2, 2.0)


def test_a_step_that_is_logged_again_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, 0, range(1, 6))
    attempt(run, 2, 5, range(5, 8))
    assert [step for step, _ in read_metrics(run)["attempt"]] == [1, 2, 3, 4, 5, 6, 7]


def test_a_zombie_that_goes_on_logging_is_not_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with MetricWriter(RunDir(run.path, 1), World()) as zombie:
        zombie.log(1, {"attempt": 1})
        attempt(run, 2, 1, range(2, 4))
        zombie.log(2, {"attempt": 1})
    assert read_metrics(run)["attempt"] == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_a_running_run_can_be_read_and_its_torn_last_line_is_ignored(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    writer = MetricWriter(RunDir(run.path, 1), World())
    writer.log(1, {"train/loss": 0.5})
    writer.flush()
    with open(run.metrics(1), "ab") as file:
        file.write(b'{"s":2,"w":1.0,"m":{"train/lo')
    assert read_metrics(run) == {"train/loss": [(1, 0.5)]}
    assert read_last(run) == {"train/loss": (1, 0.5)}
    writer.close()


def test_a_damaged_line_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, None, range(1, 4))
    damaged = run.metrics(1).read_bytes().replace(b'{"s":2,', b'{"s":2;')
    run.metrics(1).write_bytes(damaged)
    with pytest.warns(UserWarning, match="1.jsonl cannot be read"):
        assert [step for step, _ in read_metrics(run)["attempt"]] == [1, 3]


def test_nan_and_infinity_survive_as_words(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with MetricWriter(RunDir(run.path, 1), World()) as writer:
        writer.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5)})
    last = run.metrics(1).read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["m"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 0.5}
    curves = read_metrics(run)
    assert math.isnan(curves["a"][0][1])
    assert (curves["b"], curves["c"]) == ([(1, math.inf)], [(1, -math.inf)])
    json.dumps(summary(curves), allow_nan=False)
    assert from_json(summary(curves)["c"]["min"]) == -math.inf


def test_a_float_comes_back_to_the_bit(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    values = [0.1 + 0.2, 1e-300, 123456789.123456789]
    with MetricWriter(RunDir(run.path, 1), World()) as writer:
        for step, value in enumerate(values):
            writer.log(step, {"x": value})
    assert [value for _, value in read_metrics(run)["x"]] == values


def test_only_rank_0_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with MetricWriter(RunDir(run.path, 1), FakeWorld(rank=1, size=2)) as writer:
        writer.log(1, {"train/loss": 0.5})
        writer.flush()
    assert not run.metrics(1).exists()


def test_lines_are_gathered_and_written_together(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with MetricWriter(RunDir(run.path, 1), World()) as writer:
        writer.log(1, {"train/loss": 0.5})
        assert not run.metrics(1).exists()
        for step in range(2, 1500):
            writer.log(step, {"train/loss": 0.5})
        assert run.metrics(1).stat().st_size >= 64 * 1024
    assert len(read_metrics(run)["train/loss"]) == 1499


def test_what_is_not_a_number_is_refused_by_name(tmp_path: Path) -> None:
    with MetricWriter(RunDir(make_run(tmp_path).path, 1), World()) as writer:
        with pytest.raises(InputError, match=r"'val/confusion' of step 3 is a list"):
            writer.log(3, {"val/confusion": [1, 2]})


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.metrics(1).parent.mkdir()
    run.metrics(1).write_text('{"format":2,"attempt":1}\n{"s":1,"w":1,"m":{}}\n')
    with pytest.raises(NewerFormat, match="format 2"):
        read_metrics(run)


def test_a_full_disk_loses_no_line_and_leaves_no_torn_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    writer = MetricWriter(RunDir(run.path, 1), World())
    writer.log(1, {"train/loss": 0.5})
    writer.flush()
    size = run.metrics(1).stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))
        writer.log(2, {"train/loss": 0.25})
        with pytest.raises(OSError, match="too large"):
            writer.flush()
        assert run.metrics(1).stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    writer.close()
    assert read_metrics(run)["train/loss"] == [(1, 0.5), (2, 0.25)]


@pytest.mark.slow
def test_what_was_flushed_survives_kill_9(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from hpctool.rundir import RunDir; from hpctool.world import World\n"
        "from hpctool.track.metrics import MetricWriter\n"
        "writer = MetricWriter(RunDir(Path(sys.argv[1]), 1), World())\n"
        "for step in range(1, 101): writer.log(step, {'train/loss': 1 / step})\n"
        "writer.flush(); writer.log(101, {'train/loss': 0.0}); print('flushed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"flushed\n"
        os.kill(process.pid, signal.SIGKILL)
    assert read_metrics(run)["train/loss"][-1] == (100, 0.01)


def test_the_summary_knows_the_steps_of_best_and_ignores_nan() -> None:
    found = summary({"val/accuracy": [(1, 0.5), (2, 0.9), (3, math.nan), (4, 0.9), (5, 0.7)], "dead": [(1, math.nan)]})
    assert found["val/accuracy"] == {"last": 0.7, "min": 0.5, "max": 0.9, "min_step": 1, "max_step": 2}
    assert found["dead"]["min"] == "nan"


def test_the_newest_values_come_from_the_ends_of_the_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, None, range(0, 5000))
    start = time.perf_counter()
    assert read_last(run) == {"attempt": (4999, 1.0)}
    tail = list(metrics._read_lines(run.metrics(1), 1024))
    assert 10 < len(tail) < 30
    assert time.perf_counter() - start < 1


def test_what_the_newest_attempt_has_logged_long_ago_is_newer_than_what_the_one_before_has(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, None, range(0, 10))
    with MetricWriter(RunDir(run.path, 1), World()) as writer:
        writer.log(10, {"accuracy": 0.1, "early": 1.0})
    attempt(run, 2, 10, range(11, 20))
    with MetricWriter(RunDir(run.path, 2), World()) as writer:
        writer.log(20, {"accuracy": 0.9})
    attempt(run, 2, None, range(21, 5000))
    last = read_last(run)
    assert (last["accuracy"], last["early"], last["attempt"]) == ((20, 0.9), (10, 1.0), (4999, 2.0))
    assert reported(run) == {"accuracy": 0.9, "early": 1.0, "attempt": 2.0}


def test_what_a_program_has_reported_is_the_newest_value_of_each_and_nothing_of_meters(tmp_path: Path) -> None:
    run = Sample(tmp_path, "aa").begin().rundir
    with MetricWriter(run, World()) as writer:
        writer.log(1, {"loss": 0.5, "accuracy": 0.5})
        writer.log(2, {"loss": math.nan, "system/cpu": 3.0})
    assert reported(run) == {"loss": "nan", "accuracy": 0.5}
