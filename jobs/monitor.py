"""Compare what a model in service is asked and answers with what it was exported with: drift, and a report.

hpctool monitor monitor.model=digits@production
hpctool monitor monitor.model=digits@production monitor.source=scanner monitor.since=2026-01-01
hpctool monitor monitor.model=score-91c0              the bundle with which this run has scored
hpctool monitor monitor.model=digits@0003 monitor.last_rows=5000 monitor.fail_on_alarm=true
"""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from hpctool import config
from hpctool.launch.job import Resolved
from hpctool.monitor.resolve import resolve_monitor
from hpctool.monitor.schema import MonitorConfig as Config
from hpctool.rundir import RunDir
from hpctool.world import World

__all__ = ["PARENT", "Config", "resolve", "run"]

#: what `after=<run>` fills: a score, or an export
PARENT = "monitor.model"


def resolve(cfg: DictConfig) -> Resolved:
    """Pin the model's version and the part of its journal that is there now."""
    return resolve_monitor(cfg)


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Compare, say what was found and write the report. Collective: all ranks must call it."""
    from hpctool.monitor.pipeline import monitor_job

    cfg = cast(Config, OmegaConf.to_object(config.typed(config.load(rundir.config_yaml), Config)))
    return cast(dict[str, Any], world.on_main(lambda: monitor_job(rundir, cfg)))
