"""Sources: one file per kind, each with a class of rows. What needs an optional package imports it when asked."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from omegaconf import DictConfig

from hpctool import config
from hpctool.data.schema import Source
from hpctool.data.sources.base import EARLY_BYTES, RowSource, rehearse
from hpctool.errors import ConfigError, UnknownName

#: kind → where its class stands
KINDS = {
    "digits": "digits:Digits",
    "imagefolder": "imagefolder:ImageFolder",
    "npz": "npz:Arrays",
    "csv": "csvfile:CsvFiles",
    "parquet": "parquet:ParquetFiles",
    "hdf5": "hdf5file:Hdf5Files",
    "webdataset": "webdataset:TarFiles",
    "huggingface": "huggingface:HuggingFaceFolder",
}

#: these look at their images while they pin
_DECODED = ("imagefolder",)


def open_source(cfg: DictConfig, *, allow_nan: bool = False) -> RowSource:
    """The source that the configuration names; nothing is read yet. Raises InputError."""
    source = _made(cfg)
    source.allow_nan = allow_nan
    return source


def pin_source(cfg: DictConfig, *, allow_nan: bool = False) -> str:
    """What identifies the source's content, for the run's identity; a small one is read already. Raises InputError."""
    source = open_source(cfg, allow_nan=allow_nan)
    pinned = source.pin()
    if cfg.get("kind") not in _DECODED and 0 < _size_bytes(cfg) <= EARLY_BYTES:
        rehearse(source)
    return pinned


def _size_bytes(cfg: DictConfig) -> int:
    """Of the file that the source reads; 0 where it is none."""
    path = Path(cfg.get("path") or "")
    return path.stat().st_size if path.is_file() else 0


def _made(cfg: DictConfig) -> RowSource:
    if "_target_" in cfg:
        from hpctool.data.sources.own import OwnReader

        return OwnReader(cfg)
    source = _typed(cfg)
    if source.kind not in KINDS:
        raise UnknownName("kind of source", source.kind, KINDS, "Or give a _target_ of your own.")
    module, name = KINDS[source.kind].split(":")
    made = getattr(importlib.import_module(f"hpctool.data.sources.{module}"), name)(source)
    return cast(RowSource, made)


def _typed(cfg: DictConfig) -> Source:
    try:
        values = config.to_plain(config.typed(cfg, Source))
    except ConfigError as error:
        raise ConfigError(f"source.{error.key}", error.problem, error.near) from error
    return Source(**values)
