"""The loop as a job: its stages, and the gate as a job of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from hpctool import config, files
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, OperationError
from hpctool.flywheel import first_half, second_half
from hpctool.flywheel.gate import Bools, Comparison, Predictions, compare, judge, pair
from hpctool.flywheel.schema import FlywheelConfig, GateConfig
from hpctool.flywheel.story import Stage, Story, closing_table, tell
from hpctool.launch.job import Input, Resolved
from hpctool.rundir import RunDir, find_run


def run_flywheel(rundir: RunDir) -> dict[str, Any]:
    """Go once round. Every stage finds again what is there, so a loop that was killed goes on where it was."""
    cfg = config.typed(config.load(rundir.config_yaml), FlywheelConfig)
    story = Story(cfg, rundir)
    tell(story, _stages(cfg))
    closing_table(story)
    story.say(f"{sum(story.seconds.values()):.0f} s in all. What to type next:")
    for line in _next(story):
        story.say(f"  {line}")
    accuracy = {key: story.metrics(story.facts[key])["test/accuracy"] for key in second_half.GATE_PAIRS.values()}
    metrics = {f"{key}/accuracy": value for key, value in accuracy.items()}
    return {"metrics": metrics, "outputs": {"reached": story.rows, "seconds": story.seconds}}


def resolve_gate(cfg: DictConfig) -> Resolved:
    """Pin the evaluations. Raises ConfigError where one is missing or is none, InputError where two do not pair."""
    inputs = []
    for key in ("keep_old", "keep_new", "improve_old", "improve_new"):
        if cfg.gate[key] is None:
            continue
        rundir = find_run(Path(cfg.paths.runs), cfg.gate[key])
        record = rundir.record()
        if record["job"] != "evaluate" or rundir.result() is None:
            raise ConfigError(f"gate.{key}", f"{rundir.id} is no finished evaluation but a run of {record['job']}.")
        config.set_value(cfg, f"gate.{key}", rundir.id)
        inputs.append(Input("run", rundir.id, record["identity"]))
    if (cfg.gate.improve_old is None) != (cfg.gate.improve_new is None):
        raise ConfigError("gate.improve_new", "gate.improve_old and gate.improve_new go together; give both or none.")
    if not 0 < cfg.gate.alpha < 1:
        raise ConfigError("gate.alpha", f"{cfg.gate.alpha} is no level; it lies between 0 and 1.")
    for kind in ("keep", "improve"):
        if cfg.gate[f"{kind}_old"] is not None:
            _paired(cfg, kind)
    return Resolved(inputs)


def run_gate(rundir: RunDir) -> dict[str, Any]:
    """Judge, write gate.json, and print the verdict. Raises OperationError where the gate stays shut."""
    cfg = config.typed(config.load(rundir.config_yaml), GateConfig)
    overall, per_class = _keep(cfg)
    improve = []
    if cfg.gate.improve_old is not None:
        old, new, _ = _paired(cfg, "improve")
        improve.append(compare(_about(cfg, cfg.gate.improve_old), old, new))
    verdict = judge([overall], per_class, improve, cfg.gate.alpha)
    files.write_json(rundir.artifact("gate.json"), verdict.to_json())
    for reason in verdict.reasons:
        print(reason, flush=True)
    if not verdict.passed:
        raise OperationError(f"The gate stays shut: {' '.join(verdict.reasons)}")
    print("The gate is open.", flush=True)
    return {"metrics": {f"gain/{one.name}": one.gain for one in (overall, *improve)}, "outputs": {"passed": True}}


def _keep(cfg: DictConfig) -> tuple[Comparison, list[Comparison]]:
    """The comparison where nothing may be lost, overall and for each class."""
    old, new, labels = _paired(cfg, "keep")
    name, commit = _about(cfg, cfg.gate.keep_old), _commit(cfg, cfg.gate.keep_old)
    dataset = name.partition(" ")[0].partition("@")[0]
    classes = open_version(Path(cfg.paths.datasets), f"{dataset}@{commit[:12]}").classes
    per_class = [
        compare(f"{name}, class {classes[label]}", old[labels == label], new[labels == label])
        for label in np.unique(labels).tolist()
    ]
    return compare(name, old, new), per_class


def _paired(cfg: DictConfig, kind: str) -> tuple[Bools, Bools, npt.NDArray[np.int64]]:
    """`pair` of the evaluations of a kind: keep or improve."""
    old, new = (
        Predictions.read(Path(cfg.paths.runs) / run_id / "artifacts" / "predictions.npz", _commit(cfg, run_id))
        for run_id in (cfg.gate[f"{kind}_old"], cfg.gate[f"{kind}_new"])
    )
    return pair(old, new)


def _commit(cfg: DictConfig, run_id: str) -> str:
    """The data commit of an evaluation."""
    return str((RunDir(Path(cfg.paths.runs) / run_id).result() or {})["data_commit"])


def _about(cfg: DictConfig, run_id: str) -> str:
    """`digits@872aefacfa61 test`: what an evaluation was of."""
    about = config.load(RunDir(Path(cfg.paths.runs) / run_id).config_yaml)
    return f"{about.data.name} {about.data.split}"


def _stages(cfg: DictConfig) -> dict[str, Stage]:
    stages: dict[str, Stage] = {"prepare": first_half.prepare, "sweep": first_half.sweep}
    if cfg.flywheel.rehearsal.kill:
        stages["kill -9"] = first_half.kill
    return stages | {
        "evaluate": first_half.evaluate,
        "export": first_half.export,
        "serve": second_half.serve,
        "score": second_half.score,
        "monitor": second_half.monitor,
        "review": second_half.review,
        "retrain": second_half.retrain,
        "gate": second_half.gate,
        "promote": second_half.promote,
        "lineage": second_half.lineage,
        "stop": second_half.stop_server,
    }


def _next(story: Story) -> list[str]:
    best, review = story.facts["run_new"], story.remembered("review")
    return [
        "hpctool runs list --sort -val/accuracy",
        f"hpctool runs show {best}",
        f"hpctool models show {story.name}@production",
        f"hpctool data diff {story.name}@v1 {story.name}@v2",
        f"hpctool review serve {review}",
        f"hpctool serve serve.model={story.name}@production",
    ]
