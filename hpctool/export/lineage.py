"""lineage.json: where a bundle comes from, said so that it can be read when the run is gone."""

from __future__ import annotations

from typing import Any

from hpctool import files
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
