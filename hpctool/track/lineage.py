"""Where a run comes from: its code and configuration, its inputs, and the runs before it.

Datasets and models are leaves here: rooms that come later know what is inside them, and add it to the tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.rundir import RunDir
from hpctool.track.row import noting, read_row


@dataclass
class Node:
    """One thing in a lineage: `kind` run, dataset or model, what is known of it, and what it was made from."""

    kind: str
    name: str
    id: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    made_from: list[Node] = field(default_factory=list)
    #: why nothing more is known, where that is so
    problems: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """This node and everything below it."""
        yield self
        for node in self.made_from:
            yield from node.walk()

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**vars(self), "made_from": [node.to_json() for node in self.made_from]}


def run_lineage(rundir: RunDir, _above: frozenset[str] = frozenset()) -> Node:
    """The lineage of a run. What is missing or damaged is said in its node's `problems`."""
    row = read_row(rundir)
    node = Node("run", rundir.id, problems=list(row.problems))
    with noting(node.problems):
        record = rundir.record()
        node.id = record["identity"]
        code = record.get("code") or {}
        node.facts = {
            "job": row.job,
            "state": row.state,
            "step": row.step,
            "created": row.created,
            "by": row.by,
            "changed": row.changed,
            "code": {key: code.get(key) for key in ("commit", "dirty", "snapshot", "patch_sha256")},
            "config_digest": files.sha256_file(rundir.config_yaml),
            "param_digest": row.param_digest,
        }
        for one in rundir.inputs():
            node.made_from.append(_input(rundir.path.parent, one, _above | {rundir.id}))
    return node


def find_input_run(runs: Path, name: str, identity: str) -> RunDir | None:
    """The folder of a run that is named as an input, by its id or its identity; None if it is not here any more."""
    for candidate in (name, identity):
        if candidate and "/" not in candidate and (runs / candidate / "run.json").exists():
            return RunDir(runs / candidate)
    return None


def _input(runs: Path, one: dict[str, Any], above: frozenset[str]) -> Node:
    if one["kind"] == "run":
        parent = find_input_run(runs, one["name"], one["id"])
        if parent is not None and parent.id not in above:
            return run_lineage(parent, above)
        return Node("run", one["name"], one["id"], problems=[f"Its folder is not in {runs}."])
    return Node(one["kind"], one["name"], one["id"])
