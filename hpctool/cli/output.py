"""What verbs share: tables and JSON on stdout, talk on stderr, and where everything lies."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

#: The width of tables that go into a file or a pipe: nothing is cut for a terminal that is not there.
PIPE_COLUMNS = 200


@dataclass(frozen=True)
class Folders:
    """The folders that everything lies in."""

    runs: Path
    datasets: Path
    models: Path
    journals: Path
    reviews: Path


def resolve_paths(root: Path | None = None) -> Folders:
    """The folders under `root`, else under HPCTOOL_ROOT, else in the working folder: as conf/paths/here.yaml says."""
    base = root or Path(os.environ.get("HPCTOOL_ROOT", "."))
    return Folders(*(base / name for name in ("runs", "datasets", "models", "journals", "reviews")))


def json_option(command: Command) -> Command:
    """Add `--json`: stdout is data."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")(command)


def paths_option(command: Command) -> Command:
    """Add `--root`: the folder that holds runs/, datasets/, models/ and the others."""
    kind = click.Path(path_type=Path, exists=True, file_okay=False)
    text = "Folder that holds runs/, datasets/, models/ … (else HPCTOOL_ROOT, else here)."
    return click.option("--root", type=kind, default=None, help=text)(command)


def print_json(value: Any) -> None:
    """Print a JSON value on stdout, indented; NaN and the infinities are the words `nan`, `inf` and `-inf`."""
    click.echo(json.dumps(_finite(value), indent=1, allow_nan=False, default=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Talk to the person, on stderr, so that stdout stays data."""
    click.echo(text, err=True)


def say_if_slurm_is_silent() -> None:
    """One sentence if Slurm had to be asked and did not answer: what was shown is from the run folders alone."""
    from hpctool.launch.slurm.queue import QUEUE

    if QUEUE.problem:
        say(f"hpctool: {QUEUE.problem}")


def console(stderr: bool = False) -> Any:
    """A rich console that fits the terminal, and is wide and without colour where there is none.

    Words are shown as they are: brackets in a name (`f1[/cat]`) are no markup, and colons no emoji.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table on stdout, with all that is in it: text wraps between words. An empty table says so."""
    from hpctool.cli.tables import Column, print_columns

    if not rows:
        say(f"{title or 'Nothing here'}: none.")
        return
    print_columns([Column(name, [row[i] for row in rows], wraps=True) for i, name in enumerate(columns)], title or "")
    click.echo()


def cell_text(value: object) -> str:
    """A value as a table shows it: four significant places for floats, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def full_text(value: object) -> str:
    """A value with all its places, nothing for None."""
    return "" if value is None else str(value)


def distinct_texts(values: Sequence[object]) -> list[str]:
    """Values as a table shows them, and in full where that would hide that they differ."""
    short, full = [cell_text(value) for value in values], [full_text(value) for value in values]
    return short if len(set(short)) == len(set(full)) else full
