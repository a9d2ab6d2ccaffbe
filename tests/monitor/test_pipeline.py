"""The job: from a journal on disk to numbers, sentences and files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.errors import ConfigError, InputError, OperationError, UnknownName
from hpctool.export import aliases
from hpctool.launch.job import Resolved
from hpctool.monitor.pipeline import monitor_job
from hpctool.monitor.resolve import resolve_monitor
from hpctool.monitor.schema import MonitorConfig
from hpctool.rundir import RunDir
from hpctool.serve.journal import Journal
from tests.monitor.conftest import Digits, Images, Publish, Serve


def darker(images: Images) -> Images:
    return images // 2


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., tuple[DictConfig, Resolved]]:
    """The resolved configuration of `hpctool monitor monitor.model=digits@1 …`."""

    def resolve(*overrides: str) -> tuple[DictConfig, Resolved]:
        here = [f"paths.root={tmp_path}", "monitor.model=digits@1", *overrides]
        cfg = config.typed(config.compose("monitor", here).cfg, MonitorConfig)
        return cfg, resolve_monitor(cfg)

    return resolve


Ask = Callable[..., tuple[DictConfig, Resolved]]


def look(tmp_path: Path, ask: Ask, *overrides: str) -> dict[str, Any]:
    rundir = RunDir(tmp_path / "run", attempt=1)
    rundir.path.mkdir(exist_ok=True)
    cfg = config.resolved(ask(*overrides)[0])
    return monitor_job(rundir, cast(MonitorConfig, OmegaConf.to_object(cfg)))


@pytest.mark.slow
def test_clean_rows_do_not_alarm_and_worn_ones_do(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask, capfd: Any
) -> None:
    reference, images = digits.split(1, 400)
    publish_bundle(reference)
    serve(images[:200], "clean")
    serve(darker(images[200:]), "worn")
    clean = look(tmp_path, ask, "monitor.source=clean")
    assert clean["metrics"]["monitor/alarm"] == 0
    assert clean["metrics"]["monitor/num_rows"] == 200
    assert clean["outputs"]["alarmed"] == {"input": [], "output": [], "prior": []}
    assert capfd.readouterr().out.startswith("No alarm: none of 23 statistics has drifted")
    worn = look(tmp_path, ask, "monitor.source=worn")
    assert worn["metrics"]["monitor/alarm"] == 1
    assert worn["metrics"]["monitor/worst_effect"] > 1
    assert worn["metrics"]["monitor/estimated_accuracy"] < clean["metrics"]["monitor/estimated_accuracy"]
    assert "brightness" in worn["outputs"]["alarmed"]["input"]
    assert capfd.readouterr().out.startswith("ALARM: ")
    drift = json.loads((tmp_path / "run" / "artifacts" / "drift.json").read_text())
    assert drift["format"] == 1
    assert drift["sentences"] == worn["outputs"]["sentences"]
    assert len(drift["statistics"]) == 23
    assert drift["sources"] == {"worn": 200}


@pytest.mark.slow
def test_the_same_question_is_the_same_run_until_there_are_new_rows(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    bundle = publish_bundle()
    serve(digits.images[:100])
    aliases.promote(tmp_path / "models", bundle, "production", lambda path: None)
    first, resolved = ask("monitor.model=digits@production")
    assert first.monitor.model == "digits@0001"
    assert first.monitor.last_entry == 1
    assert [i.id for i in resolved.inputs] == [bundle.manifest()["digest"]]
    assert resolved.notes == ["digits@production is digits@0001."]
    assert ask()[0].monitor == first.monitor
    serve(digits.images[100:200])
    assert ask()[0].monitor.last_entry == 2
    pinned = look(tmp_path, ask, "monitor.last_entry=1")
    assert pinned["metrics"]["monitor/num_rows"] == 100


@pytest.mark.slow
def test_the_newest_rows_are_chosen_to_the_row(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    publish_bundle()
    serve(digits.images[:150], "old")
    serve(digits.images[150:250], "new")
    newest = look(tmp_path, ask, "monitor.last_rows=120")
    assert newest["metrics"]["monitor/num_rows"] == 120
    drift = json.loads((tmp_path / "run" / "artifacts" / "drift.json").read_text())
    assert drift["sources"] == {"new": 100, "old": 20}
    assert look(tmp_path, ask, "monitor.last_rows=1000")["metrics"]["monitor/num_rows"] == 250


@pytest.mark.slow
def test_a_few_rows_are_said_and_not_alarmed(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    publish_bundle()
    serve(darker(digits.images[:20]))
    found = look(tmp_path, ask)
    assert found["metrics"]["monitor/alarm"] == 0
    assert found["outputs"]["too_few"] is True
    assert found["outputs"]["sentences"][0] == (
        "Too few rows to tell: 20 predictions, and nothing is alarmed below 100."
    )


@pytest.mark.slow
def test_rows_of_a_damaged_segment_are_counted_as_lost(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    publish_bundle()
    serve(digits.images[:120])
    serve(digits.images[120:150])
    journal = Journal(tmp_path / "journals" / "digits")
    path = journal.layout.object(journal.segments()[1].stored.id)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="segment was set aside"):
        found = look(tmp_path, ask)
    assert found["metrics"]["monitor/num_rows"] == 120
    assert found["metrics"]["monitor/num_lost"] == 30
    assert found["outputs"]["sentences"][-1].startswith("30 predictions of this journal cannot be read")


@pytest.mark.slow
def test_an_alarm_fails_the_job_only_if_that_was_asked_for(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    publish_bundle()
    serve(darker(digits.images[165:400]))
    with pytest.raises(OperationError, match=r"^ALARM: .* The report is "):
        look(tmp_path, ask, "monitor.fail_on_alarm=true")
    assert (tmp_path / "run" / "artifacts" / "report.html").exists()


@pytest.mark.slow
def test_a_journal_that_is_empty_or_of_nobody_is_refused_before_anything_is_written(
    tmp_path: Path, publish_bundle: Publish, ask: Ask
) -> None:
    with pytest.raises(UnknownName, match="no model 'digits'"):
        ask()
    publish_bundle()
    with pytest.raises(UnknownName, match="no journal of a model called 'digits'"):
        ask()
    (tmp_path / "journals" / "digits" / "log").mkdir(parents=True)
    with pytest.raises(InputError, match="nothing was predicted yet"):
        ask()


@pytest.mark.slow
def test_a_window_without_rows_says_what_there_is(
    tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask
) -> None:
    publish_bundle()
    serve(digits.images[:10], model="digits@0002")
    with pytest.raises(InputError, match="no prediction of digits@0001; it has those of digits@0002"):
        look(tmp_path, ask)
    serve(digits.images[:10], "camera")
    with pytest.raises(InputError, match=r"No prediction of digits@0001 fits monitor.source=scanner; .* 'camera'"):
        look(tmp_path, ask, "monitor.source=scanner")
    with pytest.raises(InputError, match=r"fits monitor.until=2001-01-01"):
        look(tmp_path, ask, "monitor.until=2001-01-01")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.since=yesterday", "'yesterday' is no ISO time"),
        ("monitor.alpha=1.5", "between 0 and 1"),
        ("monitor.min_effect=-1", "0 or more"),
        ("monitor.min_rows=0", "1 or more"),
        ("monitor.last_rows=0", "1 or more"),
        ("monitor.last_entry=9", "ends with entry 1"),
    ],
)
def test_wrong_values_are_refused(
    digits: Digits, publish_bundle: Publish, serve: Serve, ask: Ask, override: str, message: str
) -> None:
    publish_bundle()
    serve(digits.images[:10])
    with pytest.raises(ConfigError, match=message):
        ask(override)


@pytest.mark.slow
def test_a_window_that_ends_before_it_begins_is_refused(ask: Ask) -> None:
    with pytest.raises(ConfigError, match="is not after"):
        ask("monitor.since=2026-01-02", "monitor.until=2026-01-01T23:00:00Z")


@pytest.mark.slow
def test_the_command_finds_its_run_again(tmp_path: Path, digits: Digits, publish_bundle: Publish, serve: Serve) -> None:
    publish_bundle()
    serve(darker(digits.images[165:400]))
    command = [sys.executable, "-m", "hpctool.cli.main", "monitor", "monitor.model=digits@1", f"paths.root={tmp_path}"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "runs").glob("monitor-*"))
    assert len(runs) == 1
    result = json.loads((runs[0] / "result.json").read_text())
    assert result["metrics"]["monitor/alarm"] == 1
    assert np.isfinite(list(result["metrics"].values())).all()
    failed = subprocess.run([*command, "monitor.fail_on_alarm=true"], capture_output=True, text=True, timeout=100)
    assert failed.returncode == 1
    assert "ALARM: " in failed.stderr
