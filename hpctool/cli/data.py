"""`hpctool data`: versions of datasets. What there is, what changed, who set a label, and is it all still whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hpctool.cli import data_care, data_change
from hpctool.cli.data_append import append
from hpctool.cli.output import json_option, paths_option, print_json, print_table, resolve_paths, say
from hpctool.cli.tables import age_text
from hpctool.data import describe
from hpctool.data.authors import authored_rows, label_authors
from hpctool.data.diff import diff as diff_versions
from hpctool.data.history import GraphLine
from hpctool.data.history import graph as draw
from hpctool.data.labels import NO_LABEL_TEXT
from hpctool.data.labels import blame as blame_row
from hpctool.data.pictures import draw_label_changes, draw_statistics
from hpctool.data.refs import tags, tips
from hpctool.data.store import short
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, counted, size_text


@click.group()
def group() -> None:
    """Versions of datasets. A version is NAME (its main branch), or NAME@ with a branch, tag or commit."""


def _open(root: Path | None, ref: str) -> Version:
    return open_version(resolve_paths(root).datasets, ref)


@group.command("list")
@json_option
@paths_option
def list_command(as_json: bool, root: Path | None) -> None:
    """List the datasets."""
    datasets = resolve_paths(root).datasets
    rows = list(describe.dataset_rows(datasets))
    if as_json:
        print_json(rows)
    elif not rows:
        say(f"There is no dataset in {datasets} yet. hpctool prepare data.name=digits makes one.")
    else:
        whole = [row for row in rows if not row["problem"]]
        print_table(
            ["dataset", "rows", "classes", "branches", "tags", "commit", "age"],
            [
                [
                    row["name"],
                    row["num_rows"],
                    row["num_classes"],
                    " ".join(row["branches"]),
                    " ".join(row["tags"]),
                    short(row["commit"]),
                    age_text(row["time"]),
                ]
                for row in whole
            ],
        )
    for row in rows:
        if row["problem"]:
            say(f"hpctool: {row['name']}: {row['problem']}")


@group.command()
@click.argument("version")
@click.option("--graph", is_flag=True, help="Also what was merged into it, with lines of descent.")
@click.option("--all", "everything", is_flag=True, help="The graph of all branches and tags of the dataset.")
@json_option
@paths_option
def log(version: str, graph: bool, everything: bool, as_json: bool, root: Path | None) -> None:
    """Show the history of a version, newest first.

    \b
    hpctool data log digits
    hpctool data log digits --graph --all
    """
    found = _open(root, version)
    entries = list(describe.commit_entries(found, merged=graph, everything=everything))
    for tip in [*tips(found.store), *tags(found.store)] if everything else []:
        if tip.problem:
            say(f"hpctool: {found.name}@{tip.ref} is left out: {tip.problem}. See: hpctool data verify {found.name}")
    if as_json:
        print_json(entries)
        return
    by_id = {entry["commit"]: entry for entry in entries}
    if graph or everything:
        lines = list(draw([found.store.commit_of(commit) for commit in by_id]))
    else:
        lines = [GraphLine("", commit) for commit in by_id]
    columns = [_log_cells(by_id[line.commit]) if line.commit else [""] * 7 for line in lines]
    drawn = [
        [line.drawing, *cells] if graph or everything else cells for line, cells in zip(lines, columns, strict=True)
    ]
    names = ["commit", "refs", "age", "author", "made by", "rows", "message"]
    print_table([""] * (graph or everything) + names, drawn)


def _log_cells(entry: dict[str, Any]) -> list[object]:
    return [
        short(entry["commit"]),
        " ".join(entry["refs"]),
        age_text(entry["time"]),
        entry["author"],
        entry["run"] or entry["operation"]["kind"],
        entry["num_rows"],
        entry["message"],
    ]


@group.command()
@click.argument("version")
@click.option("--rows", default=None, metavar="N|all", help="Show the uid, split and label of so many rows.")
@json_option
@paths_option
def show(version: str, rows: str | None, as_json: bool, root: Path | None) -> None:
    """Show a version, or its rows.

    \b
    hpctool data show digits@v1
    hpctool data show digits --rows 20 --json
    """
    if rows is not None and rows != "all" and not rows.isdecimal():
        raise InputError(f"--rows takes a number or 'all', not '{rows}'.")
    found = _open(root, version)
    if rows is not None:
        entries = describe.row_entries(found, None if rows == "all" else int(rows))
        if as_json:
            print_json(entries)
        else:
            print_table(["row", "uid", "split", "label"], [list(entry.values()) for entry in entries])
        return
    summary = describe.version_summary(found)
    if as_json:
        print_json(summary)
        return
    facts = ["name", "revision", "commit", "message", "author", "time", "run"]
    told = [*([fact, summary[fact]] for fact in facts), ["rows", summary["num_rows"]]]
    print_table(["version", ""], [*told, ["size", size_text(summary["size_bytes"])]])
    print_table(
        ["column", "dtype", "shape of a row", "classes"],
        [
            [column.name, column.dtype.name, column.form, ", ".join(column.classes or [])]
            for column in found.columns.values()
        ],
    )
    print_table(["split", "rows"], [[name, count] for name, count in found.splits.items()])


@group.command()
@click.argument("version")
@click.option("--plot", default=None, type=click.Path(path_type=Path), help="Draw it, too: .png, .svg or .pdf.")
@json_option
@paths_option
def stats(version: str, plot: Path | None, as_json: bool, root: Path | None) -> None:
    """Show rows, classes and the features' moments in each split."""
    found = _open(root, version)
    if plot is not None:
        draw_statistics(found, plot)
        say(f"{found.ref}: drawn in {plot}.")
    statistics = found.contents.stats
    if as_json:
        print_json({"classes": found.classes, **statistics})
        return
    splits = {name: statistics["splits"][name] for name in found.splits}
    print_table(["split", "rows"], [[name, split["rows"]] for name, split in splits.items()])
    if found.classes:
        counts = [[name, *(split["classes"][i] for split in splits.values())] for i, name in enumerate(found.classes)]
        print_table(["class", *splits], [*counts, [NO_LABEL_TEXT, *(split["unlabelled"] for split in splits.values())]])
    print_table(
        ["split", "feature", "count", "min", "max", "mean", "std"],
        [
            [name, feature, *(moments[key] for key in ("count", "min", "max", "mean", "std"))]
            for name, split in splits.items()
            for feature, moments in split["features"].items()
        ],
    )
    twice = statistics["duplicates"]
    repeated = counted(twice["repeated"], "row repeats", "rows repeat")
    say(f"{repeated} another; {counted(twice['leaked'], 'content stands', 'contents stand')} in more than one split.")


@group.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--plot", default=None, type=click.Path(path_type=Path), help="Draw labels from and to: .png, .svg, .pdf."
)
@json_option
@paths_option
def diff(a: str, b: str, plot: Path | None, as_json: bool, root: Path | None) -> None:
    """Show what is different in version B from version A: rows, columns, labels.

    \b
    hpctool data diff digits@v1 digits
    hpctool data diff digits@v1 digits --plot changes.png
    """
    found = diff_versions(_open(root, a), _open(root, b))
    if plot is not None:
        draw_label_changes(found, plot)
        say(f"{found.a} → {found.b}: drawn in {plot}.")
    if as_json:
        print_json(found.to_json())
        return
    if found.is_empty:
        say(f"{found.a} and {found.b} hold the same.")
        return
    for kind in ("rows_added", "rows_removed", "rows_changed"):
        if uids := getattr(found, kind):
            say(f"{kind.replace('_', ' ')}: {len(uids):,}")
    for kind in ("columns_added", "columns_removed", "columns_changed"):
        if names := getattr(found, kind):
            say(f"{kind.replace('_', ' ')}: {', '.join(names)}")
    if found.relabelled:
        counts = [[old or NO_LABEL_TEXT, new or NO_LABEL_TEXT, count] for old, new, count in found.label_counts()]
        print_table(["label from", "to", "rows"], counts, title=f"labels changed: {len(found.relabelled):,}")


@group.command()
@click.argument("version")
@click.argument("uid")
@json_option
@paths_option
def blame(version: str, uid: str, as_json: bool, root: Path | None) -> None:
    """Show who set a row's label, when and why, newest first."""
    entries = [asdict(entry) for entry in blame_row(_open(root, version), uid)]
    if as_json:
        print_json(entries)
        return
    # Before the first setting there was no row.
    before = [e["old"] or NO_LABEL_TEXT for e in entries[:-1]] + [""]
    print_table(
        ["label", "was", "who", "age", "why", "commit"],
        [
            [e["new"] or NO_LABEL_TEXT, was, e["who"], age_text(e["when"]), e["why"], short(e["commit"])]
            for e, was in zip(entries, before, strict=True)
        ],
    )


@group.command()
@click.argument("version")
@click.option(
    "--rows", "author", default=None, metavar="AUTHOR", help="List the uids of the rows that AUTHOR labelled."
)
@json_option
@paths_option
def authors(version: str, author: str | None, as_json: bool, root: Path | None) -> None:
    """Count whose labels these are: `import` for those that came with the data, else who set them."""
    found = _open(root, version)
    if author is not None:
        uids = authored_rows(found, author)
        print_json(uids) if as_json else click.echo("\n".join(uids))
        return
    counts = label_authors(found)
    if as_json:
        print_json(counts)
    else:
        print_table(["author", "labels"], [[who, number] for who, number in counts.items()], title=found.ref)


for command in (append, *data_change.COMMANDS, *data_care.COMMANDS):
    group.add_command(command)
