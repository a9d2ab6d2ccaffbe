"""Where a bundle comes from: lineage.json, and the tree from the bundle to its run, code, config and data commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool import files
from hpctool.export.bundle import Bundle
from hpctool.track.lineage import Node, find_input_run, run_lineage

if TYPE_CHECKING:
    from hpctool.export.source import Source


def lineage_of(source: Source) -> dict[str, Any]:
    """The content of lineage.json without format, model, time and author, which `publish` adds."""
    record = source.rundir.record()
    result = source.rundir.result() or {}
    code = record.get("code") or {}
    return {
        "run": source.rundir.id,
        "run_identity": record["identity"],
        "param_digest": result.get("param_digest"),
        "data": {"name": source.version.name, "commit": source.version.commit},
        "code": {key: code.get(key) for key in ("commit", "dirty", "snapshot")},
        "config_digest": files.sha256_file(source.rundir.config_yaml),
        "metrics": result.get("metrics", {}),
    }


def bundle_lineage(bundle: Bundle, runs: Path) -> Node:
    """The tree from a bundle down. Where the run is not here any more, what lineage.json says of it stands in.

    Raises CorruptError, NewerFormat where the bundle itself cannot be read.
    """
    said = bundle.lineage()
    facts = {"created": said["created"], "by": said["by"], "metrics": said["metrics"]}
    node = Node("model", str(bundle), bundle.manifest()["content"], facts)
    rundir = find_input_run(runs, said["run"], said["run_identity"])
    if rundir is not None:
        node.made_from.append(run_lineage(rundir))
        return node
    run = Node("run", said["run"], said["run_identity"], problems=[f"Its folder is not in {runs}."])
    run.facts = {key: said.get(key) for key in ("code", "config_digest", "param_digest")}
    run.made_from.append(Node("dataset", said["data"]["name"], said["data"]["commit"]))
    node.made_from.append(run)
    return node
