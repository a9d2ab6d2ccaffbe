"""The telling of the loop: commands that are printed before they run, and the table of what was reached."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hpctool import files
from hpctool.errors import OperationError
from hpctool.rundir import RunDir

_MEMORY = "memory.json"


class Refused(OperationError):
    """A command of the story that ended with another exit code than 0."""

    def __init__(self, command: str, code: int) -> None:
        self.command = command
        self.code = code
        super().__init__(
            f"'{command}' ended with exit code {code}; the lines above say why. Start again to go on here."
        )


@dataclass
class Story:
    """What the stages share: the configuration, what was found on the way, and the rows of the closing table."""

    cfg: DictConfig
    rundir: RunDir
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = ""

    def __post_init__(self) -> None:
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=True, emoji=False)

    @property
    def name(self) -> str:
        """The name of the dataset and of the model."""
        return str(self.cfg.flywheel.name)

    def folder(self, kind: str) -> Path:
        """runs, datasets, models, journals or reviews."""
        return Path(self.cfg.paths[kind])

    def run(self, run_id: str) -> RunDir:
        """A run's folder, for reading."""
        return RunDir(self.folder("runs") / run_id)

    def artifact(self, name: str) -> Path:
        """A file of the flywheel's own run."""
        return self.rundir.artifact(name)

    def remembered(self, key: str) -> Any:
        """What an earlier start of this flywheel has remembered, or None."""
        path = self.artifact(_MEMORY)
        return files.read_json(path).get(key) if path.exists() else None

    def remember(self, key: str, value: Any) -> None:
        """Keep what cannot be found again by asking: it depended on what was there then."""
        path = self.artifact(_MEMORY)
        before = files.read_json(path) if path.exists() else {"format": 1}
        files.write_json(path, {**before, key: value})

    def say(self, text: str) -> None:
        """A line for people; may hold rich's markup, so names in it are escaped."""
        self.console.print(text)

    def reached(self, result: str, where: Path | str = "") -> None:
        """A row of the closing table, of the stage that is being told."""
        self.rows.append((self.stage, result, str(where)))

    def hpctool(self, *arguments: str, quiet: bool = False) -> Any:
        """Run a command as a person would: print it, let it talk, give its JSON. Raises Refused."""
        shown = f"hpctool {shlex.join(arguments)}"
        if not quiet:
            self.say(f"[bold cyan]$ {escape(shown)}[/]")
        sys.stdout.flush()
        command = [sys.executable, "-m", "hpctool.cli.main", *arguments, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            raise Refused(shown, done.returncode)
        return json.loads(done.stdout)

    def train(self, *overrides: str) -> str:
        """Train one run in the local queue, wait for it, and give its id. Raises Refused."""
        where = ("cluster=local", "cluster.wait=true")
        run_ids: list[str] = self.hpctool("train", *self.cfg.flywheel.train, *overrides, *where)["runs"]
        return run_ids[0]

    def metrics(self, run_id: str) -> dict[str, float]:
        """The metrics of a run's result."""
        result = self.run(run_id).result() or {}
        return dict(result.get("metrics", {}))

    def table(self, columns: list[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
        """Print a small table; the first column reads from the left, the others from the right."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)


Stage = Callable[[Story], None]


def tell(story: Story, stages: dict[str, Stage]) -> None:
    """Go through the stages in order. Each command finds again what is there already, so nothing is done twice."""
    for number, (name, stage) in enumerate(stages.items(), start=1):
        story.stage = name
        about = (stage.__doc__ or "").strip().splitlines()[0]
        story.say(f"\n[bold]{number}/{len(stages)} {name}[/]  {about}")
        began = time.monotonic()
        try:
            stage(story)
        finally:
            story.seconds[name] = time.monotonic() - began


def closing_table(story: Story) -> None:
    """What was reached, how long it took, and where it lies: on lines of their own, so that paths stay whole."""
    story.say("\n[bold]What was reached[/]")
    width = max(map(len, story.seconds), default=0)
    told = set()
    for stage, result, where in story.rows:
        name, seconds = ("", "") if stage in told else (stage, f"{story.seconds.get(stage, 0):.0f} s")
        told.add(stage)
        story.console.print(Text(f"  {name:{width}} {seconds:>5}  {result}"))
        if where:
            story.console.print(Text(f"  {'':{width}} {'':5}  {_short(where)}", style="dim"))


def _short(path: str) -> str:
    """As a person would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
