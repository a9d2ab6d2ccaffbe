"""The first half of the loop: data to a model that is tested, published and in use."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from hpctool.errors import OperationError
from hpctool.flywheel.story import Story
from hpctool.rundir import RunDir

#: The rank is killed once a checkpoint of this share of the run has been committed.
_KILL_AFTER_SHARE = 0.2
_CHECKPOINT_EVERY_STEPS = 50


def prepare(story: Story) -> None:
    """Import the data, split it by a stable rule, commit and tag it v1."""
    story.hpctool("prepare", f"data.name={story.name}", "data.tag=v1", *story.cfg.flywheel.prepare)
    shown = story.hpctool("data", "show", f"{story.name}@v1", quiet=True)
    splits = ", ".join(f"{name} {rows}" for name, rows in shown["splits"].items())
    story.reached(f"{story.name}@v1 = {shown['commit'][:12]}: {splits}", story.folder("datasets") / story.name)


def sweep(story: Story) -> None:
    """A sweep in the background of this machine, two cells at a time."""
    where = ("cluster=local", "cluster.wait=true")
    told = [*story.cfg.flywheel.train, *story.cfg.flywheel.sweep]
    answer = story.hpctool("train", "-m", "name=sweep", f"data.name={story.name}@v1", *told, *where)
    status = story.hpctool("sweep", "status", answer["sweep"], quiet=True)
    measured = [row for row in status["rows"] if isinstance(row["metrics"].get("val/accuracy"), int | float)]
    if not measured:
        # A failed cell has no accuracy, and that of a diverged one is the text "nan".
        raise OperationError(f"No cell of sweep {answer['sweep']} has a val/accuracy: hpctool sweep status says why.")
    ranked = sorted(measured, key=lambda row: -row["metrics"]["val/accuracy"])
    varied = list(ranked[0]["values"])
    rows = [[row["run"], *row["values"].values(), f"{row['metrics']['val/accuracy']:.4f}"] for row in ranked]
    story.table(["run", *varied, "val/accuracy"], rows)
    best = ranked[0]
    story.facts["run"] = best["run"]
    keys = {text.partition("=")[0] for text in story.cfg.flywheel.sweep}
    overrides = story.run(best["run"]).record()["overrides"]
    story.facts["chosen"] = [text for text in overrides if text.partition("=")[0] in keys]
    accuracy = f"{len(ranked)} cells, best val/accuracy {best['metrics']['val/accuracy']:.4f}"
    story.reached(f"{accuracy} ({', '.join(story.facts['chosen'])})", story.run(best["run"]).path)


def kill(story: Story) -> None:
    """The best configuration on several ranks, twice: once left alone, once killed with kill -9 in the middle."""
    num_ranks = story.cfg.flywheel.rehearsal.num_ranks
    budget = min(story.cfg.flywheel.rehearsal.max_steps, story.run(story.facts["run"]).story().step)
    common = [
        f"data.name={story.name}@v1",
        *story.facts["chosen"],
        f"resources.tasks_per_node={num_ranks}",
        *("loop.max_epochs=null", f"loop.max_steps={budget}"),
        f"loop.checkpoint_every_steps={_CHECKPOINT_EVERY_STEPS}",
    ]
    straight = story.train("name=straight", *common)
    told = ("train", *story.cfg.flywheel.train, "name=killed", *common, "cluster=local")
    killed = story.hpctool(*told)["runs"][0]
    if story.run(killed).result() is None:
        pid, step = _kill_in_the_middle(story.run(killed), int(budget * _KILL_AFTER_SHARE))
        story.say(f"[bold cyan]$ kill -9 {pid}[/]   rank 0 of {num_ranks}; the newest checkpoint is of step {step}")
    story.hpctool(*told, "cluster.wait=true")
    results = {name: _result(story, run_id) for name, run_id in (("straight", straight), ("killed", killed))}
    for name, result in results.items():
        story.say(
            f"  {name:9} {result['attempts']} attempt{'s' * (result['attempts'] > 1):1}  {result['param_digest']}"
        )
    if results["straight"]["param_digest"] != results["killed"]["param_digest"]:
        raise OperationError(f"The parameters differ, which is a bug: hpctool runs compare {straight} {killed}")
    story.say("  [bold green]bit-identical[/]")
    attempts = results["killed"]["attempts"]
    digest = results["killed"]["param_digest"]
    story.reached(
        f"bit-identical on {num_ranks} ranks after {attempts} attempts: {digest[:16]}…", story.run(killed).path
    )


def evaluate(story: Story) -> None:
    """The best run on test data that no training has seen."""
    answer = story.hpctool("evaluate", f"run={story.facts['run']}", f"data.name={story.name}@v1", "data.split=test")
    evaluation = answer["runs"][0]
    story.facts["clean_old"] = evaluation
    metrics = story.metrics(evaluation)
    numbers = f"accuracy {metrics['test/accuracy']:.4f}, calibration error {metrics['test/ece']:.4f}"
    story.reached(f"{numbers}; report and confusion matrix", story.run(evaluation).path / "artifacts")


def export(story: Story) -> None:
    """A bundle with its own test, its preprocessing and its lineage; the alias that servers follow points at it."""
    version = publish(story, story.facts["run"])
    story.facts["version"] = version
    in_use = _alias(story)
    if in_use is None:
        story.hpctool("models", "promote", f"{story.name}@{version}", "--as", "production")
        in_use = version
    story.hpctool("models", "verify", f"{story.name}@{version}")
    story.reached(
        f"{story.name}@{version} passed its golden test; production is {in_use}",
        story.folder("models") / story.name / version,
    )


def publish(story: Story, run_id: str) -> str:
    """Export a run and give the version it became, or had become already."""
    export_run = story.hpctool("export", f"run={run_id}", f"bundle.name={story.name}")["runs"][0]
    result = story.run(export_run).result() or {}
    return str(result["outputs"]["model"]).partition("@")[2]


def _alias(story: Story) -> str | None:
    from hpctool.export import aliases

    move = aliases.current(story.folder("models"), story.name, "production")
    return move.version if move else None


def _result(story: Story, run_id: str) -> dict[str, Any]:
    result = story.run(run_id).result()
    assert result is not None, "a run that completed has a result"
    return result


def _kill_in_the_middle(rundir: RunDir, after_step: int) -> tuple[int, int]:
    """Wait for a committed checkpoint and end rank 0 as a dying node would; its pid and the checkpoint's step."""
    while (state := rundir.story()).step < max(1, after_step):
        if state.state in ("completed", "failed", "cancelled"):
            raise OperationError(
                f"{rundir.id} is {state.state} before it could be killed: hpctool runs show {rundir.id}"
            )
        time.sleep(0.01)
    pid = int(state.of_kind("begun")[-1]["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid, state.step
