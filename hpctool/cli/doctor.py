"""`hpctool doctor`: what this cluster does to jobs, in plain words, with what to change."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpctool.cli.output import console, json_option, print_json, print_table, say
from hpctool.errors import EXIT_FAILED

if TYPE_CHECKING:
    from hpctool.launch.slurm.doctor import Report
    from hpctool.launch.slurm.findings import Finding

WIDTH = 98
_INDENT = 10


@click.command(name="doctor", context_settings={"ignore_unknown_options": True})
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
@click.option("--probe", is_flag=True, help="Submit a job of two nodes that looks at what only jobs can see.")
@click.option(
    "--probe-min",
    type=click.FloatRange(min=0.1),
    default=15.0,
    show_default=True,
    help="Give the probe up after so many minutes in the queue.",
)
@click.option(
    "--write",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="conf/cluster/NAME.yaml",
    help="Write what was found as a site file, for cluster=NAME.",
)
@click.option("--config-dir", "config_dirs", multiple=True, type=click.Path(path_type=Path), help="Your conf folder.")
@json_option
def command(
    overrides: tuple[str, ...],
    probe: bool,
    probe_min: float,
    write: Path | None,
    config_dirs: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say in plain words what this cluster does to jobs: signals, grace time, limits, files.

    \b
    hpctool doctor
    hpctool doctor --probe                            # two nodes look at files, programs and clocks
    hpctool doctor --probe cluster.partition=gpu cluster.account=physics
    hpctool doctor --write conf/cluster/mysite.yaml   # then: hpctool train … --config-dir conf cluster=mysite
    """
    from hpctool.launch.slurm import doctor, sitefile
    from hpctool.launch.slurm.probe import run_probe

    cfg = doctor.compose(list(overrides), list(config_dirs))
    if write is not None:
        sitefile.check(write)
    report = doctor.examine(cfg)
    # Nothing could be examined; without any Slurm there is nothing to examine, which is no failure.
    failed = report.is_silent
    if probe:
        failed = not run_probe(report, cfg, probe_min * 60, say=say)
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report)
    if write is not None:
        name = sitefile.write(write, report, cfg)
        say(f"Written: {write}. Use it: hpctool train … --config-dir {write.parent.parent} cluster={name}")
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def print_report(report: Report) -> None:
    """Print all sections for a person, at most 98 columns wide."""
    from hpctool.launch.slurm import doctor

    width = min(WIDTH, console().width)
    click.echo(report.title)
    for section in report.sections:
        click.echo(f"\n{section.title}")
        for finding in section.findings:
            click.echo(finding_text(finding, width))
    if report.site is not None:
        click.echo()
        print_table(
            doctor.PARTITION_COLUMNS,
            doctor.partition_rows(report.site),
            title="Partitions (CPUs, memory and GPUs of their largest node)",
        )


def finding_text(finding: Finding, width: int = WIDTH) -> str:
    """A finding as indented lines, its advice after an arrow."""
    margin = " " * _INDENT
    lines = _wrapped(finding.text, width, f"  {finding.level:<{_INDENT - 2}}", margin)
    if finding.advice:
        lines += _wrapped(finding.advice, width, f"{margin}→ ", f"{margin}  ")
    return "\n".join(lines)


def _wrapped(text: str, width: int, first: str, then: str) -> list[str]:
    """Lines that are not broken within words (`--probe`) or between a number and its unit."""
    text = re.sub(r"(\d) (s|min|MB|GB)\b", "\\1\u00a0\\2", text)
    lines = textwrap.wrap(text, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]
