"""`hpctool chaos`: rehearse failure on your own job, here."""

from __future__ import annotations

import secrets
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpctool.cli.jobs import JobCommand
from hpctool.cli.output import console, print_json, say

if TYPE_CHECKING:
    from hpctool.chaos.report import Verdict

KIND_WORDS = "none, kill, term, hang, enospc, flip, truncate, stale, zombie, clock"


@click.command("chaos", cls=JobCommand, context_settings={"ignore_unknown_options": True})
@click.argument("job", metavar="train|run")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", type=click.UNPROCESSED)
@click.option("--kills", "count", default=8, show_default=True, help="How many faults strike the broken run.")
@click.option("--faults", "kinds", default="", help=f"Which kinds, with commas: {KIND_WORDS}. Else all but none.")
@click.option("--ranks", "num_ranks", default=0, help="Local ranks. Else what resources say; train: 3, 4, 2 or 1.")
@click.option("--seed", default=None, type=int, help="Repeats a rehearsal: the same faults at the same moments.")
@click.option("--patience", "patience_s", default=60.0, show_default=True, help="Seconds that a rank may hang.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=None, help="Where it is done: chaos/<job>-…")
@click.option("--keep", is_flag=True, help="Keep both runs, also where they are equal.")
@click.option("--config-dir", "config_dirs", multiple=True, type=click.Path(path_type=Path), help="Your conf folder.")
@click.option("--config-name", default="", help="Your own primary config instead of the job's.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON on stdout.")
def command(
    job: str,
    overrides: tuple[str, ...],
    count: int,
    kinds: str,
    num_ranks: int,
    seed: int | None,
    patience_s: float,
    folder: Path | None,
    keep: bool,
    config_dirs: tuple[Path, ...],
    config_name: str,
    as_json: bool,
) -> None:
    """Run a job here twice, straight and then broken at random moments, and compare what they come to, to the bit.

    Exit code 0: the same bits, and nothing lost. 1: not so; the table says what differs first, and why.

    \b
    hpctool chaos train data.name=digits loop.max_steps=60 loop.checkpoint_every_steps=10
    hpctool chaos train data.name=digits --faults kill,flip --kills 20 --ranks 4 --seed 7
    hpctool chaos run script=simulate.py --ranks 3 -- --size 64
    """
    from hpctool.chaos.faults import USUAL
    from hpctool.chaos.ranks import choose_ranks
    from hpctool.chaos.rehearsal import Order, Rehearsal
    from hpctool.launch.submit import Request

    # Whoever ends this ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = Request(job, list(overrides), list(config_dirs), config_name)
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    folder = folder or Path("chaos") / f"{job}-{secrets.token_hex(4)}"
    num_ranks = choose_ranks(request, num_ranks)
    wanted = [word.strip() for word in kinds.split(",") if word.strip()] or list(USUAL)
    with console(stderr=True).status("") if sys.stderr.isatty() else _Silent() as status:
        order = Order(request, folder, wanted, count, num_ranks, seed, patience_s, say, status.update)
        verdict = Rehearsal(order).run()
    if verdict.is_good and not keep:
        for path in verdict.runs.values():
            shutil.rmtree(path.parent)
        verdict.runs = {}
    path = verdict.write()
    if as_json:
        print_json(verdict.to_json())
    else:
        show(verdict)
    say(f"Report: {path}")
    raise SystemExit(0 if verdict.is_good else 1)


def show(verdict: Verdict) -> None:
    """The table of faults, and the verdict under it."""
    from hpctool.cli.tables import Column, print_columns

    told = verdict.faults
    print_columns(
        [
            Column("#", [one.fault.number for one in told]),
            Column("fault", [str(one.fault) for one in told], wraps=True),
            Column("moment", [one.fault.phase for one in told], wraps=True),
            Column("step", [one.step for one in told]),
            Column("attempt", [one.attempt or None for one in told], rank=1),
            Column("went on at", [one.resumed_at for one in told], wraps=True),
            Column("steps lost", [one.steps_lost for one in told], wraps=True),
            Column("same bits", [{True: "yes", False: "NO", None: ""}[one.same] for one in told], wraps=True),
            Column("what happened", [one.words for one in told], wraps=True),
        ]
    )
    click.echo()
    for line in verdict.sentences():
        click.echo(line)


class _Silent:
    """Where there is no terminal, only what is said counts."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, line: str) -> None:
        pass
