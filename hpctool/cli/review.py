"""`hpctool review`: people look at what the model is unsure of, and their answers become the data's next version."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path

import click

from hpctool.cli.output import json_option, paths_option, print_json, print_table, resolve_paths, say
from hpctool.cli.tables import Column, age_text, print_columns
from hpctool.data.store import short
from hpctool.errors import InputError, counted
from hpctool.export import aliases
from hpctool.review.agreement import summary
from hpctool.review.merge import apply as apply_queue
from hpctool.review.queue import Queue, list_queues, make_queue, open_queue
from hpctool.review.select import Measure, Selection
from hpctool.review.table import read_answers, take_answers, write_items
from hpctool.serve.journal import open_journal


@click.group()
def group() -> None:
    """Review predictions, or rows without a label.

    QUEUE is what `hpctool review queue` or `rows` made, or any unique beginning of its name.
    """


def _open(root: Path | None, name: str) -> Queue:
    return open_queue(resolve_paths(root).reviews, name)


@group.command()
@click.argument("model")
@click.option("--uncertain", "num_uncertain", default=60, show_default=True, help="So many of the most uncertain.")
@click.option("--audit", "num_audit", default=20, show_default=True, help="So many at random from all.")
@click.option("--by", "measure", type=click.Choice(["margin", "entropy"]), default="margin", show_default=True)
@click.option("--source", default=None, help="Only predictions of this source.")
@click.option("--since", default=None, metavar="TIME", help="Only since this time (ISO 8601; UTC without a zone).")
@click.option("--until", default=None, metavar="TIME", help="Only before this time.")
@click.option("--seed", default=0, show_default=True, help="Of the random choice.")
@click.option(
    "--dataset", default=None, metavar="NAME[@BRANCH]", help="Where answers go (else what it was trained on)."
)
@click.option("--csv", "table", default=None, type=click.Path(path_type=Path), help="Write the items as csv, too.")
@json_option
@paths_option
def queue(
    model: str,
    num_uncertain: int,
    num_audit: int,
    measure: Measure,
    source: str | None,
    since: str | None,
    until: str | None,
    seed: int,
    dataset: str | None,
    table: Path | None,
    as_json: bool,
    root: Path | None,
) -> None:
    """Choose predictions of a model version that are worth a person's time.

    \b
    hpctool review queue digits@production --source worn --uncertain 60 --audit 20
    """
    folders = resolve_paths(root)
    bundle = aliases.resolve(folders.models, model)
    asked = Selection(num_uncertain, num_audit, measure, source, _time(since), _time(until), seed)
    journal = open_journal(folders.journals, bundle.name)
    made = make_queue(folders.reviews, folders.datasets, journal, bundle, asked, dataset)
    if table is not None:
        write_items(made, table)
    counts = {reason: sum(item.reason == reason for item in made.items) for reason in ("uncertain", "audit")}
    if as_json:
        facts = {"review": made.id, "model": made.model, "dataset": made.dataset, "num_items": len(made.items)}
        print_json({**facts, **{f"num_{reason}": n for reason, n in counts.items()}})
        return
    chosen = f"{counts['uncertain']} uncertain and {counts['audit']} for the audit"
    say(f"Review {made.id}: {chosen}, of {made.record['num_candidates']:,} inputs to {made.model}.")
    say(f"Next: hpctool review serve {made.id}")


@group.command()
@click.argument("dataset", metavar="DATASET")
@click.option("--num", "num_rows", default=100, show_default=True, help="So many.")
@click.option("--model", default=None, help="Those that this model is least sure of, as `hpctool score` had it say.")
@click.option("--by", "measure", type=click.Choice(["margin", "entropy"]), default="margin", show_default=True)
@click.option("--split", default=None, help="Only rows of this split.")
@click.option("--column", default=None, help="What is shown (else the image, or the only feature).")
@click.option("--seed", default=0, show_default=True, help="Of the random choice.")
@click.option("--csv", "table", default=None, type=click.Path(path_type=Path), help="Write the items as csv, too.")
@json_option
@paths_option
def rows(
    dataset: str,
    num_rows: int,
    model: str | None,
    measure: Measure,
    split: str | None,
    column: str | None,
    seed: int,
    table: Path | None,
    as_json: bool,
    root: Path | None,
) -> None:
    """Choose rows of a dataset that have no label yet, by chance or with a model. DATASET is NAME or NAME@branch.

    \b
    hpctool review rows digits --num 200 --split train
    hpctool score data.name=digits score.model=digits@production
    hpctool review rows digits --model digits@production
    """
    from hpctool.review.rows import Scored, make_rows_queue  # reads images

    folders = resolve_paths(root)
    scored = None
    if model is not None:
        bundle = aliases.resolve(folders.models, model)
        scored = Scored(bundle, open_journal(folders.journals, bundle.name), measure)
    made = make_rows_queue(
        folders.reviews,
        folders.datasets,
        dataset,
        num_rows,
        split=split,
        column=column,
        seed=seed,
        scored=scored,
    )
    if table is not None:
        write_items(made, table)
    if as_json:
        facts = {"review": made.id, "dataset": made.dataset, "num_items": len(made.items)}
        print_json({**facts, "num_candidates": made.record["num_candidates"]})
        return
    total = made.record["num_candidates"]
    say(f"Review {made.id}: {len(made.items):,} of {counted(total, 'row')} without a label in {made.dataset}.")
    say(f"Next: hpctool review serve {made.id}")


@group.command()
@click.argument("name", metavar="QUEUE")
@click.option("--port", type=int, default=None, help="Default: always the same for a queue, if it is free.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@paths_option
def serve(name: str, port: int | None, host: str, root: Path | None) -> None:
    """Show the review page until Ctrl-C; it prints the page's URL and the ssh command for a tunnel."""
    from hpctool.review.server import serve as serve_page

    serve_page(_open(root, name), host, port, say)


@group.command()
@click.argument("name", metavar="QUEUE")
@click.option("--from", "table", required=True, type=click.Path(path_type=Path), help="csv with columns item, label.")
@click.option("--who", "person", required=True, help="Whose answers these are.")
@json_option
@paths_option
def label(name: str, table: Path, person: str, as_json: bool, root: Path | None) -> None:
    """Take answers from a csv: columns item (or prediction) and label (a class's name or index; empty is no answer)."""
    queue = _open(root, name)
    labels = read_answers(queue, table)
    num_new = take_answers(queue, labels, person)
    if as_json:
        print_json({"review": queue.id, "who": person, "num_answers": len(labels), "num_new": num_new})
    else:
        say(f"Review {queue.id}: {num_new} new answers by {person}, {len(labels) - num_new} were there already.")


@group.command()
@click.argument("name", metavar="QUEUE")
@click.option("-m", "--message", required=True, help="Why.")
@click.option("--tag", default=None, help="Name the new version for ever.")
@click.option("--accept", default=None, metavar="WHO", help="Whose answers decide where people disagree.")
@click.option("--split", default=None, help="Where the rows go (else where the dataset's own rule says).")
@json_option
@paths_option
def apply(
    name: str, message: str, tag: str | None, accept: str | None, split: str | None, as_json: bool, root: Path | None
) -> None:
    """Make the answers the dataset's next version, with who labelled each, when and why.

    Predictions are appended as new rows; rows that were there without a label get theirs.
    """
    queue = _open(root, name)
    found = apply_queue(queue, resolve_paths(root).datasets, message, tag, accept=accept, split=split)
    if as_json:
        print_json(asdict(found))
        return
    if found.num_rows:
        done = "labelled" if queue.of_rows else "appended"
        say(f"{found.dataset}: {counted(found.num_rows, 'row')} {done}; commit {short(found.commit)}{_tagged(tag)}.")
    else:
        say(f"{found.dataset}: unchanged, review {queue.id} is in commit {short(found.commit)}{_tagged(tag)} already.")
    if found.num_open or found.num_skipped:
        say(f"Left out: {found.num_open} without an answer, {found.num_skipped} skipped.")
    if found.disputed:
        say(
            f"Left out: {len(found.disputed)} on which people disagree. See: hpctool review status {queue.id}; "
            "--accept WHO says whose answers decide."
        )
    if found.gone:
        say(f"Left out: {counted(len(found.gone), 'row')} that {found.dataset} has no more.")
    if found.changed:
        say(
            f"{counted(len(found.changed), 'answer differs', 'answers differ')} from the label that the dataset has by "
            "now, which it keeps. hpctool data relabel changes it."
        )


@group.command()
@click.argument("name", metavar="[QUEUE]", required=False)
@click.option("--accept", default=None, metavar="WHO", help="Whose answers decide where people disagree.")
@json_option
@paths_option
def status(name: str | None, accept: str | None, as_json: bool, root: Path | None) -> None:
    """List the reviews, or show one: who answered how much, do people agree, how often is the model right."""
    reviews = resolve_paths(root).reviews
    if name is None:
        _print_list(reviews, as_json)
        return
    queue = open_queue(reviews, name)
    found = summary(queue, accept)
    if as_json:
        print_json(found)
        return
    facts = [
        "review",
        "model",
        "dataset",
        "created",
        "num_items",
        "num_decided",
        "num_disputed",
        "num_skipped",
        "num_open",
    ]
    rows: list[list[object]] = [[fact.removeprefix("num_"), found[fact]] for fact in facts if found[fact] != ""]
    audit = found["audit"]
    share = f"{audit['num_right'] / max(1, audit['num_items']):.1%}"
    interval = f"(95 %: {audit['low']:.1%} to {audit['high']:.1%}, {audit['num_items']} random items)"
    if found["model"] and not queue.of_rows:
        right = f"{share} {interval}" if audit["num_items"] else "no audit item is decided yet"
        rows.append(["model's accuracy", right])
    applied = found["applied"]
    rows.append(["applied", f"{applied['dataset']} {short(applied['commit'])} {applied['time']}" if applied else "no"])
    print_table(["review", ""], rows)
    people = [[person, counts["labelled"], counts["skipped"]] for person, counts in sorted(found["people"].items())]
    print_table(["who", "labelled", "skipped"], people, title="Answers")
    if found["agreement"]:
        pairs = [[f"{p['a']}, {p['b']}", p["num_items"], p["num_agreed"], p["kappa"]] for p in found["agreement"]]
        print_table(["people", "both labelled", "agree", "Cohen's kappa"], pairs, title="Agreement")
    if found["disputed"]:
        print_table(
            ["item", "answers"], [[item, _votes(queue, item)] for item in found["disputed"]], title="Disagreement"
        )


def _print_list(reviews: Path, as_json: bool) -> None:
    found = [summary(Queue(reviews / name)) for name in list_queues(reviews)]
    if as_json:
        print_json(found)
        return
    if not found:
        say(f"There is no review in {reviews} yet. hpctool review queue digits@production makes one.")
        return
    applied = [short(one["applied"]["commit"]) if one["applied"] else "" for one in found]
    print_columns(
        [
            Column("review", [one["review"] for one in found]),
            Column("model", [one["model"] for one in found], rank=1),
            Column("dataset", [one["dataset"] for one in found]),
            *(Column(name, [one[f"num_{name}"] for one in found]) for name in ("items", "decided")),
            Column("disputed", [one["num_disputed"] for one in found], rank=3),
            Column("open", [one["num_open"] for one in found]),
            Column("people", [", ".join(sorted(one["people"])) for one in found], rank=2),
            Column("applied", applied, rank=1),
            Column("age", [age_text(one["created"]) for one in found]),
        ]
    )


def _votes(queue: Queue, item: str) -> str:
    said = queue.answers()[item].values()
    return ", ".join(f"{a.who}: {queue.classes[a.label]}" for a in said if a.label is not None)


def _tagged(tag: str | None) -> str:
    return f", tag {tag}" if tag else ""


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"'{text}' is not a time; write it like 2026-11-22 or 2026-11-22T13:30.") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
