"""What can be known about serving and scoring before they are submitted. Imports no torch and no web server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from omegaconf import DictConfig

from hpctool.config import set_value
from hpctool.data.version import Version, open_version
from hpctool.errors import ConfigError, InputError
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.export.named import named_bundle
from hpctool.launch.job import Input, Resolved
from hpctool.launch.limits import num_ranks
from hpctool.serve.journal import SOURCE_BYTES

_NEEDED = ("starlette", "uvicorn", "orjson", "prometheus_client")
_POSITIVE = (
    "serve.max_batch_rows",
    "serve.max_queue_rows",
    "serve.max_queue_mb",
    "serve.max_body_mb",
    "serve.poll_s",
    "journal.flush_s",
    "journal.segment_rows",
    "journal.max_backlog_rows",
)


def resolve_serve(cfg: DictConfig) -> Resolved:
    """Check the model and the limits; a model without version or alias is pinned to its newest version.

    Raises UnknownName, CorruptError, ConfigError, InputError where the extra `serve` is not installed.
    """
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"Serving needs {', '.join(absent)}. Install it: pip install 'hpctool[serve]'")
    if num_ranks(cfg) != 1:
        raise ConfigError("resources", f"a server is one process, not {num_ranks(cfg)}. Use tasks_per_node=1.")
    if cfg.serve.auth not in ("token", "none"):
        raise ConfigError("serve.auth", f"'{cfg.serve.auth}' is neither token nor none.")
    if not 0 <= cfg.serve.port < 65536:
        raise ConfigError("serve.port", f"{cfg.serve.port} is no port; use 0 (a free one) to 65535.")
    _check_positive(cfg, _POSITIVE)
    bundle = aliases.resolve(Path(cfg.paths.models), cfg.serve.model)
    notes = []
    if "@" not in cfg.serve.model:
        set_value(cfg, "serve.model", str(bundle))
        notes = [f"{bundle} is the newest version and stays in service; serve.model={bundle.name}@<alias> follows one."]
    return Resolved([Input("model", cfg.serve.model, cfg.serve.model)], notes)


def resolve_score(cfg: DictConfig) -> Resolved:
    """Pin the dataset version and the model version, and check that they fit. Raises UnknownName, ConfigError."""
    _check_positive(cfg, ("score.batch_rows", "score.segment_rows"))
    if len(cfg.score.source.encode()) > SOURCE_BYTES:
        raise ConfigError("score.source", f"it has more than {SOURCE_BYTES} bytes.")
    bundle = named_bundle(cfg.paths, cfg.score.model)
    version = open_version(Path(cfg.paths.datasets), cfg.data.name)
    if cfg.data.split is not None:
        version.split_rows(cfg.data.split)
    check_fits(version, bundle)
    set_value(cfg, "score.model", str(bundle))
    set_value(cfg, "data.name", version.pinned)
    inputs = [
        Input("dataset", version.pinned, version.commit),
        Input("model", str(bundle), bundle.manifest()["digest"]),
    ]
    return Resolved(inputs)


def check_fits(version: Version, bundle: Bundle) -> None:
    """Whether a dataset has the column that a model takes. Raises ConfigError."""
    spec = bundle.signature().inputs[0]
    column = version.columns.get(spec.name)
    if column is not None and column.encoding is not None and len(spec.shape) == 4:
        return  # decoded to whatever the model takes
    if column is None or (column.dtype, list(column.shape)) != (spec.dtype, spec.shape[1:]):
        found = f"it is {column.dtype} {list(column.shape)}" if column else f"there is {', '.join(version.features)}"
        raise ConfigError(
            "data.name",
            f"{bundle} takes a column '{spec.name}' of {spec.dtype} {spec.shape[1:]}; in {version.ref} {found}.",
        )


def _check_positive(cfg: DictConfig, keys: tuple[str, ...]) -> None:
    for key in keys:
        group, name = key.split(".")
        if not cfg[group][name] > 0:
            raise ConfigError(key, f"it is {cfg[group][name]}; it must be more than 0.")
