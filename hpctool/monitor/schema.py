"""The types of the monitor job's configuration; the values stand in conf/monitor.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig


@dataclass
class Monitor:
    """What is looked at, and what counts as drift."""

    #: a version or alias, `digits@production`; pinned to the version
    model: str = MISSING
    #: what requests said of where their rows come from; null takes all
    source: str | None = MISSING
    #: ISO times (UTC where they name no zone), since <= t < until; null leaves that side open
    since: str | None = MISSING
    until: str | None = MISSING
    #: only the newest rows of those; null takes all
    last_rows: int | None = MISSING
    #: the part of the journal: the number of its log's last entry; filled in by `resolve`
    last_entry: int | None = MISSING
    #: the false discovery rate among all statistics
    alpha: float = MISSING
    #: the smallest population stability index that is worth an alarm
    min_effect: float = MISSING
    #: with fewer rows nothing is alarmed, and that is said
    min_rows: int = MISSING
    #: an alarm ends the job with exit code 1, after everything is written
    fail_on_alarm: bool = MISSING


@dataclass
class MonitorConfig(JobConfig):
    """`hpctool monitor`."""

    monitor: Monitor = MISSING
