"""`hpctool data append`: the rows of a source onto a branch. It is the job `prepare` with data.append=true."""

from __future__ import annotations

import click

from hpctool.cli.jobs import job_command


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("dataset")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
@click.option("-m", "--message", default=None, help="Why.")
@click.option("--json", "as_json", is_flag=True, help="Print ids and folders as JSON on stdout.")
@click.pass_context
def append(
    context: click.Context, dataset: str, overrides: tuple[str, ...], message: str | None, as_json: bool
) -> None:
    """Add the rows of a source to a branch, by its schema and its splits. DATASET is NAME or NAME@branch.

    \b
    hpctool data append faces source=imagefolder source.path=photos/march -m "the photos of March"
    hpctool data append wine source=csv source.path=more.csv source.label=quality cluster=slurm
    """
    typed = [f"data.name={dataset}", "data.append=true", *overrides]
    if message is not None:
        quoted = message.replace("\\", "\\\\").replace("'", "\\'")
        typed.append(f"data.message='{quoted}'")
    no = {"multirun": False, "dry_run": False, "cfg": None, "config_dirs": (), "config_name": ""}
    context.invoke(job_command("prepare", ""), overrides=tuple(typed), as_json=as_json, **no)
