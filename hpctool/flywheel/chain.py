"""The loop on Slurm: its stages as a chain of jobs, as far as machines go. Then people review."""

from __future__ import annotations

from omegaconf import DictConfig

from hpctool.launch.job import Chain, Link

#: what the journal says of the rows that were scored on the cluster
OFFLINE = "offline"


def chain(cfg: DictConfig) -> Chain:
    """Data → a sweep → its best run, measured and exported → the bundle over new rows → what has changed."""
    told, name = cfg.flywheel, cfg.flywheel.name
    data = f"data.name={name}@main"
    links = [
        Link("prepare", [f"data.name={name}", *told.prepare]),
        Link("train", [data, *told.train, *told.sweep], after="prepare", multirun=True),
        Link("evaluate", [data, "data.split=test"], after="train"),
        Link("export", [f"bundle.name={name}"], after="train"),
        Link("score", [data, "data.split=production", f"score.source={OFFLINE}"], after="export"),
        Link("monitor", [f"monitor.source={OFFLINE}"], after="score"),
    ]
    next_steps = [
        f"hpctool models promote {name} --as production",
        f"hpctool review queue {name}@production --source {OFFLINE} --dataset {name}@main",
        f"hpctool review serve {name}-…",
        f"hpctool review apply {name}-… --tag v2 -m 'first review'",
        f"hpctool flywheel cluster=slurm flywheel.name={name} …     # once more, with what was learnt",
    ]
    return Chain(links, next_steps)
