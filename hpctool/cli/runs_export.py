"""`hpctool runs export | tensorboard`: runs for other tools, after they ran and from their files."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from hpctool.cli.output import paths_option, resolve_paths, say
from hpctool.errors import InputError


@click.command()
@click.argument("kind", type=click.Choice(["csv", "parquet", "mlflow", "wandb"]))
@click.argument("query", nargs=-1)
@click.option("--to", default="", metavar="FILE|URI|PROJECT", help="Where; csv and parquet: a file.")
@click.option("--curves", is_flag=True, help="csv, parquet: a line for each metric and step.")
@click.option("--experiment", default="hpctool", show_default=True, help="mlflow: the experiment's name.")
@paths_option
def export(kind: str, query: tuple[str, ...], to: str, curves: bool, experiment: str, root: Path | None) -> None:
    """Write the runs that fit a QUERY as a table, or send them to a tracker; nothing is sent by jobs themselves.

    \b
    hpctool runs export csv 'sweep=train-1a2b' --to sweep.csv
    hpctool runs export mlflow 'job=train state=completed' --to sqlite:///mlflow.db
    """
    from hpctool.track import export as track
    from hpctool.track.query import choose
    from hpctool.track.runs import list_rows

    rows = choose(list_rows(resolve_paths(root).runs), " ".join(query))
    if not rows:
        raise InputError(f"No runs fit '{' '.join(query)}', so there is nothing to export. See: hpctool runs list")
    if not to:
        raise InputError(
            f"Where shall {kind} go? Say --to " + ("FILE" if kind in ("csv", "parquet") else "URI|PROJECT")
        )
    if kind in ("csv", "parquet"):
        write = track.write_csv if kind == "csv" else track.write_parquet
        columns, values = track.curve_table(rows) if curves else track.table(rows)
        write(columns, values, Path(to))
        say(f"{len(values)} lines of {len(rows)} runs in {to}")
    elif kind == "mlflow":
        sent = track.to_mlflow(rows, to, experiment)
        say(f"{sent} of {len(rows)} runs sent to {to}, the others were there.")
    else:
        say(f"{track.to_wandb(rows, to)} runs sent to {to}.")


@click.command()
@click.argument("query", nargs=-1)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=None, help="Only make the folder.")
@paths_option
def tensorboard(query: tuple[str, ...], port: int, folder: Path | None, root: Path | None) -> None:
    """Start TensorBoard on the runs that fit a QUERY, on 127.0.0.1; Ctrl-C ends it.

    TensorBoard knows no password: everybody on this host can read what it shows. With --folder nothing is started.

    \b
    hpctool runs tensorboard 'sweep=train-1a2b'
    """
    from hpctool.track.export import link_event_files
    from hpctool.track.query import choose
    from hpctool.track.runs import list_rows

    rows = choose(list_rows(resolve_paths(root).runs), " ".join(query))
    if folder is not None:
        folder.mkdir(parents=True)
        say(f"{len(link_event_files(rows, folder))} runs in {folder}: tensorboard --logdir {folder}")
        return
    # 0700: what is linked there is as private as before, but for what TensorBoard itself shows.
    with tempfile.TemporaryDirectory(prefix="hpctool-tensorboard-") as name:
        ids = link_event_files(rows, Path(name))
        say(f"{len(ids)} runs. TensorBoard has no password: whoever is on this host can open its page.")
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", name, "--host", "127.0.0.1"]
        process = subprocess.Popen([*command, "--port", str(port), "--load_fast", "false"])
        try:
            raise SystemExit(process.wait())
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
