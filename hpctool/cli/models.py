"""`hpctool models`: exported models, their aliases, and whether they still answer as they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpctool.cli import models_view
from hpctool.cli.lineage import trace
from hpctool.cli.output import json_option, paths_option, print_json, resolve_paths, say
from hpctool.errors import HpctoolError, InputError
from hpctool.export import aliases
from hpctool.export.bundle import known_versions, list_models


@click.group()
def group() -> None:
    """Exported models: list, show, verify, promote, rollback."""


@group.command("list")
@click.argument("name", required=False)
@json_option
@paths_option
def list_command(name: str | None, as_json: bool, root: Path | None) -> None:
    """List the versions of all models, or of one."""
    models = resolve_paths(root).models
    names = [name] if name else list_models(models)
    rows = [models_view.row(models, bundle) for one in names for bundle in known_versions(models, one)]
    if as_json:
        print_json(rows)
    elif rows:
        models_view.print_rows(rows)
    else:
        say(f"There is no model in {models} yet. hpctool export run=… makes one.")
    for row in rows:
        for problem in row["problems"]:
            say(f"hpctool: {problem}")


@group.command()
@click.argument("ref")
@json_option
@paths_option
def show(ref: str, as_json: bool, root: Path | None) -> None:
    """Show everything about one version: digits (the newest), digits@0003 or digits@production."""
    folders = resolve_paths(root)
    bundle = aliases.resolve(folders.models, ref)
    found, lineage = models_view.details(folders.models, bundle), trace(folders, str(bundle))
    if as_json:
        print_json({**found, "lineage": lineage.to_json()})
    else:
        models_view.print_details(found, lineage)


@group.command()
@click.argument("ref")
@json_option
@paths_option
def verify(ref: str, as_json: bool, root: Path | None) -> None:
    """Check files and checksums, load the graph and run the golden test."""
    from hpctool.export.verify import load_verified

    bundle = aliases.resolve(resolve_paths(root).models, ref)
    try:
        loaded = load_verified(bundle.path)
    except HpctoolError as error:
        if as_json:
            print_json({"model": str(bundle), "ok": False, "problem": str(error)})
        raise
    if as_json:
        print_json({"model": str(bundle), "ok": True, "worst": loaded.worst, "tolerance": loaded.signature.tolerance})
    else:
        tolerance = f"largest difference {loaded.worst:.2g}, allowed {loaded.signature.tolerance:.2g}"
        click.echo(f"{bundle} is whole and answers as it should: {loaded.num_golden} golden rows, {tolerance}.")


@group.command()
@click.argument("ref")
@click.option("--as", "alias", required=True, help="The alias: production, staging …")
@click.option("-m", "--message", default="", help="Why, for the history.")
@json_option
@paths_option
def promote(ref: str, alias: str, message: str, as_json: bool, root: Path | None) -> None:
    """Point an alias at a version that passes its golden test."""
    from hpctool.export.verify import load_verified

    models = resolve_paths(root).models
    bundle = aliases.resolve(models, ref)
    before = aliases.current(models, bundle.name, alias)
    move = aliases.promote(models, bundle, alias, load_verified, message)
    _say_move(bundle.name, alias, before, move, as_json)


@group.command()
@click.argument("ref")
@click.option("-m", "--message", default="", help="Why, for the history.")
@json_option
@paths_option
def rollback(ref: str, message: str, as_json: bool, root: Path | None) -> None:
    """Point an alias (digits@production) back at where it pointed before."""
    from hpctool.export.verify import load_verified

    models = resolve_paths(root).models
    name, _, alias = ref.partition("@")
    if not alias:
        raise InputError(f"Say which alias of {name} is to go back: hpctool models rollback {name}@production")
    before = aliases.current(models, name, alias)
    move = aliases.rollback(models, name, alias, load_verified, message)
    _say_move(name, alias, before, move, as_json)


def _say_move(name: str, alias: str, before: aliases.Move | None, move: aliases.Move, as_json: bool) -> None:
    if as_json:
        answer: dict[str, Any] = {"model": name, "alias": alias, **vars(move)}
        print_json({**answer, "before": before.version if before else None})
    elif before and before.number == move.number:
        click.echo(f"{name}@{alias} is {move.version} already.")
    else:
        click.echo(f"{name}@{alias} is now {move.version}" + (f" (was {before.version})." if before else "."))
