"""`hpctool data`: what makes a version, a name for one, or something else of one: labels, merges, tags, exports."""

from __future__ import annotations

from pathlib import Path

import click

from hpctool.cli.output import json_option, paths_option, print_json, print_table, resolve_paths, say
from hpctool.data import merge as merging
from hpctool.data import refs
from hpctool.data.export import FORMATS
from hpctool.data.export import export as export_version
from hpctool.data.labels import NO_LABEL_TEXT, read_fixes
from hpctool.data.labels import relabel as relabel_rows
from hpctool.data.layout import DEFAULT_BRANCH, split_ref
from hpctool.data.store import Store, short
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, MergeConflict, counted, listing


@click.command()
@click.argument("dataset")
@click.option("--from", "fixes", required=True, type=click.Path(path_type=Path), help="csv with columns uid, label.")
@click.option("-m", "--message", required=True, help="Why.")
@click.option("--tag", default=None, help="Name the new version for ever.")
@click.option("--allow-missing", is_flag=True, help="An empty label, or -1, takes the row's label away.")
@json_option
@paths_option
def relabel(
    dataset: str, fixes: Path, message: str, tag: str | None, allow_missing: bool, as_json: bool, root: Path | None
) -> None:
    """Change labels: a new version that shares everything else. DATASET is NAME or NAME@branch.

    The csv has the columns uid and label (a class's name or index), and perhaps who and why. A row without a label
    there is refused, as it may be a slip; with --allow-missing its label is taken away.
    """
    version = _open_branch(root, dataset)
    changes = read_fixes(version, fixes, allow_missing=allow_missing)
    commit = relabel_rows(version.store, version.revision, changes, message, tag, base=version.commit)
    # Where nothing was to be changed it is the branch's newest commit, which somebody else may just have made.
    num_labels = commit.operation.get("num_labels", 0) if commit.id != version.commit else 0
    num_gone = commit.operation.get("num_taken_away", 0) if num_labels else 0
    if as_json:
        done = {"dataset": version.ref, "commit": commit.id, "num_labels": num_labels, "num_taken_away": num_gone}
        print_json(done | {"tag": tag})
    elif num_labels:
        gone = f", {num_gone:,} of them taken away" if num_gone else ""
        say(f"{version.ref}: labels changed: {num_labels:,}{gone}; commit {short(commit.id)}.")
    else:
        say(f"{version.ref}: unchanged, every label is so already; commit {short(commit.id)}.")


@click.command()
@click.argument("dataset")
@click.argument("revision")
@click.option("-m", "--message", default="", help="Why.")
@click.option(
    "--prefer", type=click.Choice(["ours", "theirs"]), default=None, help="For rows that both sides labelled otherwise."
)
@click.option("--expect", default=None, metavar="COMMIT", help="Only if the branch is still at this commit.")
@click.option("--tag", default=None, help="Name the merged version for ever.")
@json_option
@paths_option
def merge(
    dataset: str,
    revision: str,
    message: str,
    prefer: merging.Side | None,
    expect: str | None,
    tag: str | None,
    as_json: bool,
    root: Path | None,
) -> None:
    """Bring what was done at REVISION (a branch, tag or commit) onto a branch: DATASET is NAME or NAME@branch.

    \b
    hpctool data merge digits second-look
    hpctool data merge digits@main second-look --prefer theirs -m "the second look is right"
    """
    ours = _open_branch(root, dataset)
    store = ours.store
    theirs = Version(store, revision, store.resolve(revision))
    try:
        done = merging.merge(store, ours.revision, theirs, message, prefer=prefer, expect=expect, tag=tag)
    except MergeConflict as conflict:
        _show_conflict(conflict, as_json)
        raise
    if as_json:
        print_json({"dataset": ours.ref, "tag": tag} | vars(done) | {"commit": done.commit.id})
    elif done.how == "unchanged":
        say(f"{ours.ref}: unchanged, {theirs.ref} is in it already; commit {short(done.commit.id)}.")
    elif done.how == "fast-forward":
        say(f"{ours.ref}: went on to {theirs.ref}, nothing else was done meanwhile; commit {short(done.commit.id)}.")
    else:
        say(
            f"{ours.ref}: {theirs.ref} merged; rows added {done.num_rows:,}, labels changed {done.num_labels:,}; "
            f"commit {short(done.commit.id)}."
        )


@click.command()
@click.argument("version")
@click.argument("name", required=False)
@click.option("--delete", "gone", default=None, metavar="NAME", help="Take away a tag whose commit is lost for good.")
@json_option
@paths_option
def tag(version: str, name: str | None, gone: str | None, as_json: bool, root: Path | None) -> None:
    """List the tags, or name a version for ever.

    \b
    hpctool data tag digits
    hpctool data tag digits v2
    """
    datasets = resolve_paths(root).datasets
    if name is not None and gone is not None:
        raise InputError("Set a tag or take one away: NAME and --delete do not go together.")
    if name is not None:
        found = open_version(datasets, version)
        found.store.create_tag(name, found.commit)
        if as_json:
            print_json({"tag": name, "commit": found.commit})
        else:
            say(f"{found.name}@{name} is commit {short(found.commit)}.")
        return
    store = Store.open(datasets, split_ref(version)[0])
    if gone is not None:
        last = refs.drop_tag(store, gone)
        say(f"{store.name}@{gone} is gone{f'; it was commit {short(last)}' if last else ''}.")
    if as_json or gone is None:
        _show_refs(store, "tag", refs.tags(store), as_json)


@click.command()
@click.argument("version")
@click.argument("name", required=False)
@click.option("--delete", "gone", default=None, metavar="NAME", help="End a branch; `gc` may take what no other needs.")
@click.option("--force", is_flag=True, help="NAME is there already: let it begin anew at this version.")
@json_option
@paths_option
def branch(version: str, name: str | None, gone: str | None, force: bool, as_json: bool, root: Path | None) -> None:
    """List the branches, begin one at a version, or end one.

    \b
    hpctool data branch digits
    hpctool data branch digits@v1 experiment
    hpctool data branch digits --delete experiment
    hpctool data branch digits@1a2b3c experiment --force
    """
    datasets = resolve_paths(root).datasets
    if name is not None and gone is not None:
        raise InputError("Begin a branch or end one: NAME and --delete do not go together.")
    if force and name is None:
        raise InputError("--force lets a branch begin anew; say which: hpctool data branch NAME@COMMIT BRANCH --force")
    if name is not None:
        _begin(open_version(datasets, version), name, force)
    store = Store.open(datasets, split_ref(version)[0])
    if gone is not None:
        if gone == DEFAULT_BRANCH:
            raise InputError(f"'{gone}' is the branch that a dataset's name alone means; it is not deleted.")
        last = store.delete_branch(gone)
        say(f"{store.name}@{gone} is gone; it was commit {short(last)}: hpctool data branch {store.name}@{short(last)}")
    listed = name is None and gone is None
    if as_json or listed:
        _show_refs(store, "branch", refs.tips(store), as_json)


def _show_refs(store: Store, kind: str, found: list[refs.Tip], as_json: bool) -> None:
    if as_json:
        print_json({tip.ref: None if tip.problem else tip.commit for tip in found})
        return
    columns = [kind, "commit", "problem"] if any(tip.problem for tip in found) else [kind, "commit"]
    print_table(columns, [[tip.ref, short(tip.commit), tip.problem][: len(columns)] for tip in found])
    for tip in found:
        if tip.problem:
            _say_lost(store, kind, tip)


def _begin(version: Version, name: str, force: bool) -> None:
    """Begin a branch at a version; with `force` also one that is there."""
    if not force or name not in version.store.branches():
        version.store.create_branch(name, version.commit)
        say(f"{version.name}@{name} begins at commit {short(version.commit)}.")
        return
    was = version.store.reset_branch(name, version.commit)
    before = f"; it was commit {short(was)}" if was else ""
    say(f"{version.name}@{name} begins anew at commit {short(version.commit)}{before}.")


def _say_lost(store: Store, kind: str, tip: refs.Tip) -> None:
    ways = [f"hpctool data restore {store.name} --from <second root> brings it back"]
    if tip.whole:
        last = f"{store.name}@{short(tip.whole)}"
        ways.append(f"hpctool data branch {last} {tip.ref} --force goes on from its newest commit that is whole")
    if kind == "tag" or tip.ref != DEFAULT_BRANCH:
        ways.append(f"hpctool data {kind} {store.name} --delete {tip.ref} gives it up")
    say(f"hpctool: {store.name}@{tip.ref}: {tip.problem}. {'; '.join(ways)}.")


@click.command()
@click.argument("version")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--as", "kind", required=True, type=click.Choice(list(FORMATS)), help="What is written.")
@click.option("--split", "splits", multiple=True, metavar="SPLIT", help="Only this split; may be said again.")
@click.option("--column", "columns", multiple=True, metavar="COLUMN", help="Only this column; may be said again.")
@json_option
@paths_option
def export(
    version: str,
    path: Path,
    kind: str,
    splits: tuple[str, ...],
    columns: tuple[str, ...],
    as_json: bool,
    root: Path | None,
) -> None:
    """Write a version as a plain file or folder, which is not there yet.

    \b
    hpctool data export digits@v1 digits.h5 --as hdf5
    hpctool data export digits@v1 shards --as webdataset --split train
    """
    found = open_version(resolve_paths(root).datasets, version)
    num_rows = export_version(found, path, kind, splits=splits, columns=columns)
    if as_json:
        print_json({"path": str(path), "format": kind, "num_rows": num_rows, "commit": found.commit})
    else:
        say(f"{found.pinned}: {counted(num_rows, 'row')} in {path} ({kind}).")


def _open_branch(root: Path | None, dataset: str) -> Version:
    """The tip of a branch that is to be written. Raises InputError."""
    datasets, (name, revision) = resolve_paths(root).datasets, split_ref(dataset)
    store = Store.open(datasets, name)
    if revision not in (branches := store.branches()):
        begun = f"{name}@{revision} NAME" if revision in store.tag_names() else f"{name} {revision}"
        raise InputError(
            f"'{revision}' is no branch of dataset '{name}' (there is: {listing(branches)}); labels go onto a branch. "
            f"Begin one: hpctool data branch {begun}"
        )
    return open_version(datasets, dataset)


def _show_conflict(conflict: MergeConflict, as_json: bool) -> None:
    if as_json:
        print_json({"ours": conflict.ours, "theirs": conflict.theirs, "conflicts": conflict.rows})
    elif conflict.rows:
        rows = [
            [
                row["uid"],
                *(
                    cell
                    for side in (row["ours"], row["theirs"])
                    for cell in (side["label"] or NO_LABEL_TEXT, side.get("who", ""), side.get("why", ""))
                ),
            ]
            for row in conflict.rows
        ]
        print_table(["uid", "ours", "by", "why", "theirs", "by", "why"], rows)


COMMANDS = (relabel, merge, tag, branch, export)
