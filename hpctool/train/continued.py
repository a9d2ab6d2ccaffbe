"""What must fit before a run goes on from a checkpoint: its own, or that of another run (`continue_from`).

A run that goes on from another begins at that one's step, position in the samples and random streams, with its budget
counted from the same step 0; it commits this state as its own before its first step, and needs its parent no more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool.checkpoint.manifest import Manifest, verify
from hpctool.checkpoint.restore import Restored, read
from hpctool.config import load, set_value, to_plain
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, InputError, listing
from hpctool.launch import continued
from hpctool.launch.job import Input, Resolved
from hpctool.launch.result import current_story
from hpctool.rundir import UNDERWAY, RunDir, Story, find_run
from hpctool.train.schedule import num_steps
from hpctool.train.schema import TrainConfig
from hpctool.world import World

#: What may change between two attempts of one run: it does not decide what is learnt.
_FREE = (
    *("name", "num_threads", continued.KEY, "data.checksums", "parallel.compare_every_steps", "loop.keep_last"),
    *("loop.checkpoint_every_steps", "loop.checkpoint_every_min", "loop.eval_batch_size", "loop.num_workers"),
    *("loop.keep_top", "loop.keep_every_steps", "loop.checkpoint_checksums", "loop.checkpoint_reserve", "init_from"),
    "allow_regress",
)
#: What a run that only goes on for longer changes.
_LONGER = {"loop.max_steps", "loop.max_epochs"}
#: Below these a key that is new is a change too; elsewhere it came with a newer hpctool.
_OPEN = ("model.", "optim.", "task.", "augment.", "schedule.own.", "data.dataset.")
#: Where these change, what was best by the old measure says nothing.
_MEASURE = ("data.commit", "data.val_split", "data.dataset.", "loop.best_metric", "loop.best_mode", "loop.keep_best")
#: What torch's schedulers write into an optimizer's groups, for the next step to begin with.
_SCHEDULED = (
    *("lr", "initial_lr", "min_lr", "max_lr", "swa_lr", "momentum", "base_momentum", "max_momentum", "betas"),
)


def resolve_origin(cfg: DictConfig) -> Resolved | None:
    """Pin `continue_from` to a run and a step that has a checkpoint. Raises UnknownName, InputError, ConfigError."""
    if not cfg.continue_from:
        return None
    name, which = continued.split(str(cfg.continue_from))
    parent = find_run(Path(cfg.paths.runs), name)
    record = parent.record()
    if record["job"] != "train":
        raise InputError(f"continue_from={name}: {parent.id} is a run of '{record['job']}', not of 'train'.")
    step = _chosen_step(parent, which)
    budget = _budget(cfg)
    if budget is not None and budget <= step:
        raise ConfigError(
            "loop.max_steps",
            f"{parent.id} is at step {step} and the budget is {budget} steps in all, so nothing "
            f"is left to do. Give more: loop.max_steps={2 * step}",
        )
    set_value(cfg, continued.KEY, f"{parent.id}@{step}")
    return Resolved(
        [Input("run", parent.id, record["identity"])], [f"It begins with what {parent.id} had learnt at step {step}."]
    )


def _budget(cfg: DictConfig) -> int | None:
    """The budget in steps; None where only the job will know, since the data is a Dataset of the user's own."""
    if cfg.loop.max_steps is not None:
        return int(cfg.loop.max_steps)
    if cfg.data.dataset is not None:
        return None
    return num_steps(cfg.loop, open_version(Path(cfg.paths.datasets), cfg.data.name).splits[cfg.data.train_split])


def _chosen_step(parent: RunDir, which: str) -> int:
    story = current_story(parent)
    steps = _steps(parent, story)
    if not steps:
        raise InputError(f"continue_from={parent.id}: it has no checkpoint to go on from; it is {story.state}.")
    there = f"its checkpoints are of step {listing(map(str, steps))}"
    if which == "best":
        best = (parent.result() or {}).get("outputs", {}).get("best_step")
        if best not in steps:
            raise InputError(f"continue_from={parent.id}@best: its best step, {best}, is not kept; {there}.")
        return int(best)
    if which:
        if not which.isdigit() or int(which) not in steps:
            raise InputError(f"continue_from={parent.id}@{which}: there is no such checkpoint; {there}.")
        return int(which)
    if story.state in UNDERWAY:
        raise InputError(
            f"continue_from={parent.id}: it is {story.state}, so its newest checkpoint is not its last. Wait for it, "
            f"or name one: continue_from={parent.id}@{steps[-1]}"
        )
    return steps[-1]


def _steps(parent: RunDir, story: Story) -> list[int]:
    """The steps of which a run has a checkpoint, in order of their commits."""
    return [int(body["step"]) for body in story.checkpoints if (parent.path / body["path"] / "MANIFEST.json").exists()]


def from_origin(cfg: TrainConfig, world: World, fresh: Mapping[str, Any]) -> Restored | None:
    """The checkpoint that `continue_from` names, made to fit this config; None without one. Collective.

    `fresh` is the state in which the run would begin. Raises InputError where the checkpoint is gone, CorruptError.
    """
    if not cfg.continue_from:
        return None
    run, step = continued.split(cfg.continue_from)
    parent = RunDir(Path(cfg.paths.runs) / run)
    chosen = world.on_main(lambda: _found(parent, int(step)))
    found = Manifest(parent.path / chosen["path"], chosen["body"])
    restored: list[Restored] = []
    world.together(lambda: restored.append(read(found, world.rank, world.size)))
    before = continued.settings(to_plain(load(parent.config_yaml)))
    changed = changes(before, settings(cfg))
    return dataclasses.replace(
        restored[0],
        state=_fitting(cfg, restored[0].state, fresh, changed),
        per_rank=None if "seed" in changed else restored[0].per_rank,
    )


def _found(parent: RunDir, step: int) -> dict[str, Any]:
    commits = [body for body in parent.story().checkpoints if body["step"] == step]
    there = [body for body in commits if (parent.path / body["path"]).exists()]
    if not there:
        known = listing(map(str, _steps(parent, parent.story())))
        raise InputError(
            f"continue_from={parent.id}@{step}: that checkpoint is gone; there is one of step {known}. Name another."
        )
    return {"path": there[-1]["path"], "body": verify(parent.path / there[-1]["path"], there[-1]["digest"]).body}


def _fitting(
    cfg: TrainConfig, state: dict[str, Any], fresh: Mapping[str, Any], changed: Mapping[str, Any]
) -> dict[str, Any]:
    """A parent's state as a run begins with it in which some settings are others."""
    found = {**state, "nonfinite": fresh["nonfinite"]}
    _check_rate(cfg, state, changed)
    found["optimizer"] = _fitting_optimizers(list(cfg.optim), state["optimizer"], fresh["optimizer"], changed)
    for part, key in (("schedule", "schedule."), ("scaler", "loop.precision")):
        if any(one.startswith(key) for one in changed):
            found.pop(part, None)
            found |= {part: fresh[part]} if part in fresh else {}
    if fresh["ema"] is not None and state["ema"] is None:
        # The average begins with what it averages from now on.
        values = {name: state["model"].get(name.removeprefix("module."), own) for name, own in fresh["ema"].items()}
        found["ema"] = values
    if any(one.startswith(_MEASURE) for one in changed):
        found["best"] = fresh["best"]
    gave_up = cfg.loop.patience is not None and state["best"].get("num_worse", 0) >= cfg.loop.patience
    if gave_up or changed.keys() - _LONGER:
        # Other settings get their own time to be better; with none changed it is the longer run to the bit.
        found["best"] = {**found["best"], "num_worse": 0}
    return found


def _check_rate(cfg: TrainConfig, state: Mapping[str, Any], changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Raises InputError where a rate was changed that the state of a torch scheduler would set aside."""
    rates = [key for key in changed if key.startswith("optim.") and key.endswith(".lr")]
    if rates and state.get("schedule") and not any(key.startswith("schedule.") for key in changed):
        before, now = changed[rates[0]]
        raise InputError(
            f"continue_from={cfg.continue_from}: {rates[0]} was {before} and is {now}, but the state of "
            f"{cfg.schedule.own['_target_']} goes on from the rate that it had come to. Leave {rates[0]} as it was, or "
            "change schedule too: another one begins anew, with the new rate."
        )


def _fitting_optimizers(
    names: list[str], theirs: dict[str, Any], fresh: dict[str, Any], changed: Mapping[str, Any], prefix: str = "optim."
) -> dict[str, Any]:
    """An optimizer's state, or several by name, with the settings that were changed; another kind begins anew."""
    keys = {key.removeprefix(prefix) for key in changed if key.startswith(prefix)}
    # Another schedule begins anew: not from what the one before had made of the rate.
    keys |= {key for key in _SCHEDULED if any(one.startswith("schedule.") for one in changed)}
    if "_target_" in keys or ("param_groups" in theirs) != ("param_groups" in fresh):
        return fresh
    if "param_groups" not in theirs:
        return {name: _fitting_optimizers([], theirs[name], fresh[name], changed, f"optim.{name}.") for name in names}
    groups = zip(theirs["param_groups"], fresh["param_groups"], strict=True)
    kept = [{**group, **{key: own[key] for key in keys if key in own}} for group, own in groups]
    return {**theirs, "param_groups": kept}


def settings(cfg: TrainConfig) -> dict[str, Any]:
    """What of a config says what is learnt, for a checkpoint's info."""
    return continued.settings(dataclasses.asdict(cfg))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which two settings differ, and their values then and now."""
    keys = [
        key
        for key in sorted({*before, *now})
        if key not in _FREE and ((key in before and key in now) or key.startswith(_OPEN))
    ]
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def check_config(rundir: RunDir, restored: Restored, cfg: TrainConfig) -> None:
    """Refuse to go on from the run's own checkpoint with another config. Raises InputError with the difference."""
    # Checkpoints of earlier versions do not hold it.
    found = changes(restored.info.get("config") or {}, settings(cfg) if restored.info.get("config") else {})
    if found:
        text = listing((f"{key} was {before} and is {now}" for key, (before, now) in found.items()), 5)
        typed = " ".join(f"{key}={now}" for key, (_, now) in list(found.items())[:3])
        raise InputError(
            f"The config of run {rundir.id} has changed since its checkpoint of step {restored.step}: {text}. Put that "
            f"back in {rundir.config_yaml.name}, or let a run of its own go on with it: "
            f"hpctool train continue_from={rundir.id} {typed}"
        )
