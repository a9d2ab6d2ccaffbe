"""Sources: one file per kind. Each has `pin`, for the login node, and `load`, for the ranks."""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from omegaconf import DictConfig

from hpctool import config
from hpctool.data.schema import Source
from hpctool.data.sources import own
from hpctool.data.sources.table import Table
from hpctool.errors import ConfigError, UnknownName

KINDS = ("digits", "imagefolder", "npz", "csv")


class Kind(Protocol):
    """A module of this folder."""

    def pin(self, source: Source) -> str:
        """Check that the source is there and name its content in few words. SourceError. Imports no torch."""
        ...

    def load(self, source: Source) -> Table:
        """Open the source; the same rows in the same order on every rank. SourceError."""
        ...


def pin_source(cfg: DictConfig) -> str:
    """What identifies the source's content, for the run's identity. Raises InputError."""
    if "_target_" in cfg:
        return own.pin(cfg)
    source = _typed(cfg)
    return _kind(source).pin(source)


def load_source(cfg: DictConfig) -> Table:
    """The rows of the source that the configuration names. Raises InputError."""
    if "_target_" in cfg:
        return own.load(cfg)
    source = _typed(cfg)
    return _kind(source).load(source)


def _typed(cfg: DictConfig) -> Source:
    try:
        values = config.to_plain(config.typed(cfg, Source))
    except ConfigError as error:
        raise ConfigError(f"source.{error.key}", error.problem, error.near) from error
    return Source(**values)


def _kind(source: Source) -> Kind:
    if source.kind not in KINDS:
        raise UnknownName("kind of source", source.kind, KINDS, "Or give a _target_ of your own.")
    module = {"csv": "csvfile"}.get(source.kind, source.kind)
    return cast(Kind, importlib.import_module(f"hpctool.data.sources.{module}"))
