"""From a model, a run or a dataset back to code, configuration and data, across all rooms."""

from __future__ import annotations

import datetime
import re
from typing import Any

from rich.text import Text
from rich.tree import Tree

from hpctool.cli.output import Folders, cell_text
from hpctool.cli.runs_view import code_text, short_id
from hpctool.cli.tables import print_whole, settings_text
from hpctool.config import flatten
from hpctool.errors import UnknownName
from hpctool.rundir import find_run
from hpctool.track.lineage import Node, find_input_run, run_lineage
from hpctool.track.row import noting

_SHORT_HEX = 12
_PREDICTION = re.compile(r"[0-9a-f]{8}-\d{6,}")


def trace(folders: Folders, name: str) -> Node:
    """The lineage of what a name means: a run, `model@alias`, `model@0003` (or `model:0003`), `dataset@revision`,
    or the id of a prediction. Raises UnknownName, InputError.
    """
    if _PREDICTION.fullmatch(name) and (found := _prediction(folders, name)):
        _complete(folders, found, set())
        return found
    thing, at, revision = name.replace(":", "@", 1).partition("@")
    is_dataset = bool(at) and (folders.datasets / thing).is_dir()
    if _is_model(folders, thing, revision, or_else=not is_dataset):
        node = Node("model", f"{thing}{at}{revision}")
    elif is_dataset:
        from hpctool.data.store import Store

        node = Node("dataset", f"{thing}@{revision}", Store.open(folders.datasets, thing).resolve(revision))
    elif at:
        places = [folder for folder in (folders.models, folders.datasets) if folder.is_dir()]
        raise UnknownName(
            "model or dataset", thing, sorted({path.name for place in places for path in place.iterdir()})
        )
    else:
        node = run_lineage(find_run(folders.runs, name))
    if node.kind == "model":
        _add_bundle(folders, node)
    _complete(folders, node, set())
    return node


def _prediction(folders: Folders, name: str) -> Node | None:
    """One answer of a server, or of an offline scoring, found in whichever journal has it."""
    from hpctool.serve.journal import open_journal

    for folder in sorted(folders.journals.glob("*/log")):
        try:
            found = open_journal(folders.journals, folder.parent.name).find(name)
        except UnknownName:
            continue
        origin = found.segment.origin
        when = datetime.datetime.fromtimestamp(found.time, datetime.UTC).isoformat(timespec="milliseconds")
        facts: dict[str, Any] = {"request": found.request, "source": found.source, "time": when, "by": origin.run}
        facts |= {"class": int(found.probabilities.argmax()), "confidence": float(found.probabilities.max())}
        return Node("prediction", name, facts=facts, made_from=[Node("model", origin.model)])
    return None


def _is_model(folders: Folders, name: str, revision: str, or_else: bool) -> bool:
    """Whether a model is meant; where a dataset has the same name, only by a version or an alias of the model."""
    if not (folders.models / name).is_dir() or (folders.runs / name).exists():
        return False
    from hpctool.export.aliases import names

    return or_else or revision.isdecimal() or revision in names(folders.models, name)


def _complete(folders: Folders, node: Node, seen: set[tuple[str, str, str]]) -> None:
    """Add what only later rooms know: what a dataset's commit says, and what a model was made from."""
    key = (node.kind, node.name, node.id)
    if key in seen:
        return
    seen.add(key)
    with noting(node.problems):
        if node.kind == "dataset":
            _add_commit(folders, node)
        elif node.kind == "model" and not node.facts:
            _add_bundle(folders, node)
    for inner in node.made_from:
        _complete(folders, inner, seen)


def _add_commit(folders: Folders, node: Node) -> None:
    from hpctool.data.authors import label_authors
    from hpctool.data.store import Store
    from hpctool.data.version import open_version

    name = node.name.partition("@")[0]
    commit = Store.open(folders.datasets, name).commit_of(node.id)
    node.facts = {
        "message": commit.message,
        "author": commit.author,
        "time": commit.time,
        "operation": commit.operation,
        "parents": commit.parents,
    }
    if commit.run:
        node.made_from.append(_run(folders, commit.run))
    # Last: the labels themselves are read, and what is damaged there must not hide the rest.
    node.facts["labels"] = label_authors(open_version(folders.datasets, f"{name}@{node.id}"))


def _add_bundle(folders: Folders, node: Node) -> None:
    """What a model was made from. The bundle knows the most of it by itself, should the run's folder be gone."""
    from hpctool.export.aliases import resolve

    bundle = resolve(folders.models, node.name)
    said = bundle.lineage()
    node.name, node.id = str(bundle), str(bundle.manifest()["digest"])
    node.facts = {"created": bundle.manifest().get("created"), **said}
    run = _run(folders, said["run"])
    node.made_from.append(run)
    if not run.facts:
        run.id, run.facts = said["run_identity"], {"code": said["code"]}
        run.made_from.append(Node("dataset", said["data"]["name"], said["data"]["commit"]))
    elif run.id != said["run_identity"]:
        run.problems.append(f"The model was made from another run of this name, {said['run_identity']}.")
    elif run.facts["config_digest"] != said["config_digest"]:
        run.problems.append("Its config.yaml is not the one that the model was made from any more.")


def _run(folders: Folders, run_id: str) -> Node:
    rundir = find_input_run(folders.runs, run_id, "")
    return run_lineage(rundir) if rundir else Node("run", run_id, problems=[f"Its folder is not in {folders.runs}."])


# ---------------------------------------------------------------------------------------------- the tree


def print_tree(node: Node) -> None:
    """Print a lineage as a tree on stdout, what it was made from below it."""
    tree = Tree(_label(node), guide_style="dim")
    _grow(tree, node)
    print_whole(tree)


def _grow(tree: Tree, node: Node) -> None:
    for name, text in _lines(node):
        tree.add(Text.assemble((f"{name:<8}", "dim"), text))
    for problem in node.problems:
        tree.add(Text(problem, "yellow"))
    for inner in node.made_from:
        _grow(tree.add(_label(inner)), inner)


def _label(node: Node) -> Text:
    short = short_id(node.id)
    return Text.assemble((node.kind, "bold"), " ", (node.name, "bold cyan"), f"  {short}" if short else "")


def _lines(node: Node) -> list[tuple[str, str]]:
    facts: dict[str, Any] = node.facts
    lines = []
    if node.kind == "prediction":
        lines += [("answer", f"class {facts['class']}, confidence {facts['confidence']:.4f}")]
        lines += [("request", f"{facts['request']}  {facts['source']}".rstrip()), ("time", facts["time"])]
        lines += [("by", facts["by"])]
    if node.kind == "run" and "job" in facts:
        step = f" at step {facts['step']}" if facts["step"] else ""
        lines += [("job", f"{facts['job']}, {facts['state']}{step}")]
        lines += [("config", f"{facts['config_digest'][:_SHORT_HEX]}  {settings_text(facts['changed'])}".rstrip())]
    if node.kind == "run" and facts.get("code"):
        lines += [("code", code_text(facts["code"]))]
    if node.kind == "dataset" and facts:
        operation = settings_text({k: v for k, v in flatten(facts["operation"]).items() if k != "kind"})
        lines += [("message", facts["message"]), ("author", f"{facts['author']}, {facts['time']}")]
        lines += [("by", f"{cell_text(facts['operation']['kind'])}  {operation}".rstrip())]
        lines += [("labels", ", ".join(f"{author} {number:,}" for author, number in facts.get("labels", {}).items()))]
    return [(name, text) for name, text in lines if text]
