"""The quickstart's story: data, a sweep, a kill, an exact resume, an evaluation, an export, and where it all came from.

Each step is a command that is printed and works alone; what is there already is found again and said.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hpctool import RunDir
from hpctool.errors import HpctoolError
from hpctool.rundir import find_run

HPCTOOL = str(Path(sys.executable).with_name("hpctool"))
ROOT = Path(os.environ.get("HPCTOOL_ROOT", "."))
RUNS = ROOT / "runs"
SWEPT = ["model=mlp,cnn", "optim.lr=3e-3,1e-2,3e-2"]
NUM_RANKS = 3  # with two, a + b = b + a hides what DDP does inexactly
KILL_AFTER_STEP = 150

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass
class Reached:
    """What the closing table tells."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, reached: str, where: str = "") -> None:
        self.rows.append((what, reached, where))


def hpctool(*arguments: str, quiet: bool = False) -> Any:
    """Run a command of hpctool as a person would: print it, let it talk, give its JSON. Ends the story if it fails."""
    if not quiet:
        console.print(f"[bold cyan]$ hpctool {' '.join(quoted(a) for a in arguments)}[/]", soft_wrap=True)
    done = subprocess.run([HPCTOOL, *arguments, "--json"], stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise SystemExit(f"This step failed with exit code {done.returncode}; the lines above say why.")
    return json.loads(done.stdout)


def quoted(argument: str) -> str:
    return f"'{argument}'" if any(c in argument for c in " {}[]*") else argument


def prepare(reached: Reached) -> None:
    """Import the digits, split them by a stable rule, commit and tag them."""
    hpctool("prepare", "data.name=digits", "source=digits", "data.tag=v1")
    shown = hpctool("data", "show", "digits@v1")
    splits = ", ".join(f"{name} {rows}" for name, rows in shown["splits"].items())
    reached.facts["commit"] = shown["commit"]
    reached.add("data", f"digits@v1 = {shown['commit'][:12]}: {splits}", str(ROOT / "datasets" / "digits"))


def sweep(reached: Reached) -> None:
    """Six cells, two at a time, in the background of this machine."""
    where = ["cluster=local", "cluster.wait=true"]
    answer = hpctool("train", "-m", "name=sweep", "data.name=digits", *SWEPT, *where)
    status = hpctool("sweep", "status", answer["sweep"], quiet=True)
    ranked = sorted(status["rows"], key=lambda row: row["metrics"]["val/accuracy"], reverse=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("model", "optim.lr", "val/accuracy", "run"):
        table.add_column(name, justify="right" if name == "val/accuracy" else "left")
    for row in ranked:
        values = row["values"]
        table.add_row(values["model"], values["optim.lr"], f"{row['metrics']['val/accuracy']:.4f}", row["run"])
    console.print(table)
    best = ranked[0]
    reached.facts["best"] = best
    how = ", ".join(f"{key}={value}" for key, value in best["values"].items())
    reached.add(
        "sweep",
        f"{len(ranked)} cells, best val/accuracy {best['metrics']['val/accuracy']:.4f} ({how})",
        str(RUNS / best["run"]),
    )


def kill(reached: Reached) -> None:
    """The best configuration on three ranks, twice: once left alone, once killed with `kill -9` in the middle."""
    chosen = [f"{key}={value}" for key, value in reached.facts["best"]["values"].items()]
    common = ["data.name=digits", *chosen, f"resources.tasks_per_node={NUM_RANKS}", "loop.checkpoint_every_steps=50"]
    straight = hpctool("train", "name=straight", *common, "cluster=local", "cluster.wait=true")["runs"][0]
    killed = hpctool("train", "name=killed", *common, "cluster=local")["runs"][0]
    rundir = find_run(RUNS, killed)
    if rundir.result() is None:
        kill_in_the_middle(rundir)
    hpctool("train", "name=killed", *common, "cluster=local", "cluster.wait=true")
    shown = {name: hpctool("runs", "show", name, quiet=True) for name in (straight, killed)}
    digests = [shown[name]["param_digest"] for name in (straight, killed)]
    for name, digest in zip(("straight", "killed"), digests, strict=True):
        console.print(
            f"  {name:9} {shown[straight if name == 'straight' else killed]['attempts']} attempt(s)  {digest}"
        )
    if digests[0] != digests[1]:
        raise SystemExit("The digests differ: this is a bug. hpctool runs compare " + f"{straight} {killed}")
    console.print("  [bold green]bit-identical[/]")
    attempts = shown[killed]["attempts"]
    reached.add(
        "kill -9", f"bit-identical on {NUM_RANKS} ranks after {attempts} attempts: {digests[0][:16]}…", str(rundir.path)
    )


def kill_in_the_middle(rundir: RunDir) -> None:
    """Wait for a committed checkpoint, then end rank 0 as a dying node would."""
    while (story := rundir.story()).step < KILL_AFTER_STEP:
        if story.state in ("completed", "failed", "cancelled"):
            raise SystemExit(f"{rundir.id} is {story.state} before it could be killed. hpctool runs show {rundir.id}")
        time.sleep(0.01)
    pid = story.of_kind("begun")[-1]["pid"]
    os.kill(pid, signal.SIGKILL)
    console.print(
        f"[bold cyan]$ kill -9 {pid}[/]   rank 0 of {NUM_RANKS}, the newest checkpoint is of step {story.step}"
    )


def evaluate(reached: Reached) -> None:
    """The best run on test data that no training has seen."""
    run = reached.facts["best"]["run"]
    answer = hpctool("evaluate", f"run={run}")
    shown = hpctool("runs", "show", answer["runs"][0], quiet=True)
    metrics = shown["metrics"]
    folder = RUNS / answer["runs"][0] / "artifacts"
    report = f"accuracy {metrics['test/accuracy']:.4f}, calibration error {metrics['test/ece']:.4f}"
    reached.add("evaluate", f"{report}; per-class report and confusion matrix", str(folder))


def export(reached: Reached) -> None:
    """A bundle that carries its own test, its lineage and its preprocessing; then the alias that servers follow."""
    run = reached.facts["best"]["run"]
    hpctool("export", f"run={run}", "bundle.name=digits")
    hpctool("models", "promote", "digits", "--as", "production")
    version = hpctool("models", "verify", "digits@production")["model"].partition("@")[2]
    reached.add(
        "export", f"digits@{version} is production; golden test passed", str(ROOT / "models" / "digits" / version)
    )


def lineage(reached: Reached) -> None:
    """From the bundle back to the run, the code, the config and the data."""
    command = ["runs", "lineage", "digits@production"]
    console.print(f"[bold cyan]$ hpctool {' '.join(command)}[/]")
    subprocess.run([HPCTOOL, *command], check=True)


def closing_table(reached: Reached, seconds: dict[str, float]) -> None:
    """What was reached, where it lies, what to type next."""
    table = Table(title="What was reached", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "reached", "where"):
        table.add_column(name, overflow="fold")
    table.add_column("s", justify="right")
    for what, result, where in reached.rows:
        table.add_row(what, result, where, f"{seconds.get(what, 0):.0f}")
    console.print(table)
    console.print(f"{sum(seconds.values()):.0f} s in all. What to type next:")
    best = reached.facts["best"]["run"]
    prefix = "source .venv/bin/activate" if not os.environ.get("VIRTUAL_ENV") else ""
    for line in (
        prefix,
        "hpctool runs list --sort -val/accuracy",
        f"hpctool runs show {best}",
        "hpctool models show digits",
        "hpctool data log digits",
        f"tensorboard --logdir {RUNS}",
    ):
        if line:
            console.print(f"  {line}")


def main() -> None:
    steps: dict[str, Callable[[Reached], None]] = {
        "data": prepare,
        "sweep": sweep,
        "kill -9": kill,
        "evaluate": evaluate,
        "export": export,
        "lineage": lineage,
    }
    reached, seconds = Reached(), {}
    for number, (name, step) in enumerate(steps.items(), start=1):
        console.rule(f"[bold]{number}/{len(steps)} {name}[/] · {(step.__doc__ or '').strip()}", align="left")
        began = time.monotonic()
        step(reached)
        seconds[name] = time.monotonic() - began
    closing_table(reached, seconds)


if __name__ == "__main__":
    try:
        main()
    except HpctoolError as error:
        raise SystemExit(f"hpctool: {error}") from error
