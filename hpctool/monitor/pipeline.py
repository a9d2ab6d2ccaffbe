"""The monitor job: read a window of the journal, compare, write drift.json and report.html."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import OperationError
from hpctool.export import aliases
from hpctool.monitor import page, words
from hpctool.monitor.drift import KINDS, Limits, Report, compare
from hpctool.monitor.schema import MonitorConfig
from hpctool.monitor.window import read_window
from hpctool.rundir import RunDir, now
from hpctool.serve.journal import open_journal

DRIFT_FORMAT = 1


def monitor_job(rundir: RunDir, cfg: MonitorConfig) -> dict[str, Any]:
    """Compare, say it, write the artifacts; what result.json holds.

    Raises InputError where the window holds no rows, and with `fail_on_alarm` OperationError on an alarm.
    """
    asked = cfg.monitor
    bundle = aliases.resolve(Path(cfg.paths.models), asked.model)
    window = read_window(open_journal(Path(cfg.paths.journals), bundle.name, asked.last_entry), asked)
    report = compare(bundle.reference(), window, Limits(asked.alpha, asked.min_effect, asked.min_rows))
    look = page.Look(asked, window, bundle.signature().classes, rundir.id, now())
    said = words.sentences(report, look.classes, window.num_lost)

    path = rundir.artifact("report.html")
    files.write_json(rundir.artifact("drift.json"), to_json(report, look, said))
    files.write_atomic(path, page.render(report, look, said))
    print("\n".join([*said, f"The report is {path}"]), flush=True)
    if report.alarm and asked.fail_on_alarm:
        raise OperationError(f"{said[0]} The report is {path}.")
    return {"metrics": _metrics(report, window.num_lost), "outputs": _outputs(report, asked.model, said)}


def to_json(report: Report, look: page.Look, said: list[str]) -> dict[str, Any]:
    """The content of drift.json: every number of the report."""
    return {
        "format": DRIFT_FORMAT,
        "asked": vars(look.asked),
        "from": look.first,
        "to": look.last,
        "classes": look.classes,
        "sources": look.window.sources,
        "num_segments": look.window.num_segments,
        "num_lost": look.window.num_lost,
        "alarm": report.alarm,
        "too_few": report.too_few,
        "sentences": said,
        **asdict(report),
    }


def _metrics(report: Report, num_lost: int) -> dict[str, float]:
    found: dict[str, float] = {
        "alarm": int(report.alarm),
        "num_rows": report.num_rows,
        "num_lost": num_lost,
        "num_statistics": len(report.statistics),
        "num_alarmed": sum(one.alarm for one in report.statistics),
        "worst_effect": max(one.effect for one in report.statistics),
    }
    if report.accuracy is not None:
        found["estimated_accuracy"] = report.accuracy.accuracy
        found["estimated_accuracy_low"] = report.accuracy.low
        found["estimated_accuracy_high"] = report.accuracy.high
    return {f"monitor/{name}": value for name, value in found.items()}


def _outputs(report: Report, model: str, said: list[str]) -> dict[str, Any]:
    return {
        "model": model,
        "alarmed": {kind: report.alarmed(kind) for kind in KINDS},
        "too_few": report.too_few,
        "sentences": said,
        "artifacts": ["artifacts/report.html", "artifacts/drift.json"],
    }
