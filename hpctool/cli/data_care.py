"""`hpctool data`: care for what is stored. Is it whole, what mends it, what does it cost, who used it, what can go."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli.output import json_option, paths_option, print_json, print_table, resolve_paths, say
from hpctool.cli.tables import age_text
from hpctool.data import exposure as exposing
from hpctool.data import gc as collecting
from hpctool.data.layout import split_ref
from hpctool.data.reach import Damage
from hpctool.data.restore import restore as restore_store
from hpctool.data.size import size as size_of
from hpctool.data.store import Store, short
from hpctool.data.usage import commits_in_use
from hpctool.data.verify import verify as verify_store
from hpctool.errors import OperationError, counted, size_text


def _open_store(root: Path | None, dataset: str) -> Store:
    return Store.open(resolve_paths(root).datasets, split_ref(dataset)[0])


def _say_damage(damage: Damage, why: str = "") -> None:
    needed = ", ".join(damage.versions) or "no version that is known"
    runs = f"; used by {', '.join(dict.fromkeys(damage.runs))}" if damage.runs else ""
    click.echo(f"{damage.path} is damaged: {damage.problem}. It is needed by {needed}{runs}.{why and f' {why}.'}")


@click.command()
@click.argument("dataset")
@click.option("--deep", is_flag=True, help="Read every object and check its checksums, not only its size.")
@json_option
@paths_option
def verify(dataset: str, deep: bool, as_json: bool, root: Path | None) -> None:
    """Check that everything a dataset's versions need is there and is what was written."""
    report = verify_store(_open_store(root, dataset), deep=deep)
    if as_json:
        print_json(report.to_json())
    else:
        for damage in report.damaged:
            _say_damage(damage)
        checked = "read" if deep else "looked at for their size (--deep reads them)"
        whole = "" if report.damaged else "; nothing is damaged"
        size = size_text(report.size_bytes)
        say(f"commits {report.num_commits}, objects {report.num_objects} ({size}) {checked}{whole}.")
    if report.damaged:
        raise OperationError(
            f"Dataset '{dataset}' is damaged; files that are not what was written: {len(report.damaged)}."
        )


@click.command()
@click.argument("dataset")
@click.option(
    "--from",
    "source",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A second copy: the dataset's folder, or the folder that holds it.",
)
@json_option
@paths_option
def restore(dataset: str, source: Path, as_json: bool, root: Path | None) -> None:
    """Mend what is damaged or was purged from a second copy, checked while it is copied.

    \b
    hpctool data restore digits --from /archive/datasets
    """
    store = _open_store(root, dataset)
    done = restore_store(store, source)
    if as_json:
        left = [{"path": damage.path, "problem": damage.problem, "why": why} for damage, why in done.left]
        print_json({"mended": done.mended, "left": left})
    else:
        for path in done.mended:
            click.echo(f"{path} is whole again.")
        for damage, why in done.left:
            _say_damage(damage, why)
        say(f"{store.name}: mended {len(done.mended):,}, still damaged {len(done.left):,}.")
    if done.left:
        raise OperationError(f"Dataset '{store.name}' is still damaged; files without a whole copy: {len(done.left)}.")


@click.command()
@click.argument("dataset")
@click.option("--delete", is_flag=True, help="Do it; otherwise it is only said what would be done.")
@click.option(
    "--grace-days",
    type=float,
    default=14,
    show_default=True,
    help="Leave alone what is younger; less than 1 only while nobody writes.",
)
@click.option("--trash-days", type=float, default=14, show_default=True, help="Keep for so long in the trash.")
@click.option("--run-days", type=float, default=90, show_default=True, help="Keep what a run has used since.")
@json_option
@paths_option
def gc(
    dataset: str, delete: bool, grace_days: float, trash_days: float, run_days: float, as_json: bool, root: Path | None
) -> None:
    """Put what nothing needs into the trash, and delete what lies there long enough. A dry run unless --delete.

    Needed is what a branch or tag leads to, what a running job holds, and what runs have used of late.
    """
    paths = resolve_paths(root)
    store = _open_store(root, dataset)
    keep = collecting.Keep(*(days * collecting.DAY_S for days in (grace_days, trash_days, run_days)))
    done = collecting.gc(store, delete=delete, keep=keep, more=commits_in_use(store, paths.runs))
    if as_json:
        print_json(done.to_json())
        return
    rows = [[kind, count, size_text(size_bytes)] for kind, (count, size_bytes) in sorted(done.moved.items())]
    if done.deleted_files:
        rows.append(["deleted from the trash", done.deleted_files, size_text(done.deleted_bytes)])
    if rows:
        print_table(["moved to the trash" if delete else "would go to the trash", "files", "size"], rows)
    for path in done.refused[:10]:
        say(f"hpctool: {path} belongs to somebody else, in a folder that you may not write; it stays.")
    num_young = counted(done.num_young, "that nothing needs is", "that nothing needs are")
    young = f", {num_young} younger than {grace_days:g} days" if done.num_young else ""
    back = f", {done.num_taken_back:,} taken back from the trash" if done.num_taken_back else ""
    leases = (
        f", {counted(done.expired_pins, 'lease of a run has', 'leases of runs have')} run out"
        if done.expired_pins
        else ""
    )
    say(f"{store.name}: {counted(done.num_needed, 'file is', 'files are')} needed{young}{back}{leases}.")
    if not delete and (rows or done.expired_pins):
        say("Nothing was changed; --delete does it.")


@click.command()
@click.argument("dataset")
@json_option
@paths_option
def size(dataset: str, as_json: bool, root: Path | None) -> None:
    """Show the bytes of each version: all, those that it alone needs, those that it shares."""
    found = size_of(_open_store(root, dataset))
    if as_json:
        versions = [vars(version) | {"shared_bytes": version.shared_bytes} for version in found.versions]
        print_json(vars(found) | {"versions": versions, "damaged": [vars(damage) for damage in found.damaged]})
        return
    print_table(
        ["version", "commit", "rows", "files", "all", "alone", "shared"],
        [[v.version, short(v.commit), v.num_rows, v.num_files, *map(size_text, _bytes(v))] for v in found.versions],
    )
    unneeded = f"nothing needs {found.unneeded_files:,} of them ({size_text(found.unneeded_bytes)})"
    on_disk = f"{counted(found.num_files, 'file')}, {size_text(found.size_bytes)} on disk"
    say(f"{on_disk}; {unneeded}; in the trash {size_text(found.trash_bytes)}.")
    for damage in found.damaged:
        _say_damage(damage)


def _bytes(version: object) -> list[int]:
    return [getattr(version, name) for name in ("size_bytes", "unique_bytes", "shared_bytes")]


@click.command()
@click.argument("version")
@json_option
@paths_option
def runs(version: str, as_json: bool, root: Path | None) -> None:
    """List the runs that used a version (NAME@REVISION) or any version (NAME).

    \b
    hpctool data runs digits@v1
    """
    store = _open_store(root, version)
    commit = store.resolve(split_ref(version)[1]) if "@" in version else None
    found = exposing.runs_of(store, commit)
    if as_json:
        print_json([vars(use) | {"order": use.order and vars(use.order)} for use in found])
        return
    rows = [
        [use.run, use.job, short(use.commit), use.split, exposing.standing(use).state, use.by, age_text(use.time)]
        for use in found
    ]
    print_table(["run", "job", "commit", "split", "state", "by", "age"], rows, title=f"runs that used {version}")


@click.command()
@click.argument("dataset")
@click.argument("uid")
@json_option
@paths_option
def exposure(dataset: str, uid: str, as_json: bool, root: Path | None) -> None:
    """Show which runs saw a row, in which steps and with which label."""
    store = _open_store(root, dataset)
    found = list(exposing.exposures(store, uid.lower()))
    if as_json:
        print_json([one.to_json() for one in found])
        return
    rows = [
        [one.run, one.job, short(one.commit), one.split, one.label, one.state, one.step, _steps_text(one)]
        for one in found
    ]
    names = ["run", "job", "commit", "split", "label", "state", "steps taken", "steps that saw it"]
    print_table(names, rows, title=f"runs that used row {uid}")


def _steps_text(one: exposing.Exposure) -> str:
    if one.steps is None:
        return f"({one.note})"
    shown = " ".join(map(str, one.steps[:12]))
    return f"{shown} … {one.steps[-1]} ({len(one.steps)} times)" if len(one.steps) > 12 else shown


COMMANDS = (verify, restore, gc, size, runs, exposure)
