"""Expanding Hydra's sweep grammar (`a=1,2`, `range(…)`, `choice(…)`, `glob(…)`) into cells.

Composing takes 70 ms, setting a value 0.3 ms: a config is composed once for each combination of group choices, and
value overrides are applied to copies.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpctool import config
from hpctool.errors import ConfigError, InputError, UnknownName

#: More cells than any cluster's user wants by accident (`range(1,1000000)`).
MAX_CELLS = 100_000


@dataclass(frozen=True)
class Cell:
    """One point of a grid: its overrides as strings and the composed, not yet typed, config."""

    overrides: list[str]
    cfg: DictConfig
    choices: dict[str, str]


@dataclass(frozen=True)
class _Axis:
    key: str
    values: list[str]
    is_group: bool
    is_plain: bool  # `key=value` that changes what is there: cheap to apply to a copy


def expand(
    job: str, overrides: Sequence[str], config_dirs: Sequence[Path] = (), primary: str = ""
) -> tuple[list[Cell], list[str]]:
    """All cells of a sweep in the order of the arguments (the last varies fastest), and the keys that vary.

    Raises ConfigError, UnknownName, InputError.
    """
    axes = _axes(overrides, config_dirs)
    varied = [axis.key for axis in axes if len(axis.values) > 1]
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_CELLS:
        raise InputError(f"This sweep has {count:,} cells; {MAX_CELLS:,} are the most. Vary less at once.")
    return list(_cells(job, axes, config_dirs, primary)), varied


def refuse_sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> None:
    """Say that `-m` is missing where an override holds several values. Raises ConfigError."""
    for axis in _axes(overrides, config_dirs):
        if len(axis.values) > 1:
            raise ConfigError(axis.key, f"it has {len(axis.values)} values. Add -m for a sweep over them.")


def _axes(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[_Axis]:
    with config.hydra_context(config_dirs):
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        axes = []
        for text in overrides:
            try:
                override = parser.parse_overrides([text])[0]
                values = _values(override)
            except OverrideParseException as error:
                raise config.unreadable(text, error) from error
            except HydraException as error:
                raise ConfigError(text, f"{str(error).splitlines()[0]}.") from error
            key = override.get_key_element()
            is_group = bool(loader.get_group_options(override.key_or_group))
            plain = not (override.is_add() or override.is_delete() or override.is_force_add() or is_group)
            axes.append(_Axis(key, values, is_group, plain))
    return axes


def _values(override: Override) -> list[str]:
    if override.is_delete() and not override.is_sweep_override():
        return [override.get_value_element_as_str() if override.value() is not None else ""]
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(override.key_or_group, "an interval has no end of values; a grid needs a list or a range.")
    values = list(override.sweep_string_iterator())
    if not values:
        raise UnknownName("value matching", str(override.input_line), [])
    return values


def _cells(job: str, axes: list[_Axis], config_dirs: Sequence[Path], primary: str) -> Iterator[Cell]:
    composed: dict[tuple[str, ...], config.Composed] = {}
    parser = OverridesParser.create()
    for point in itertools.product(*(axis.values for axis in axes)):
        texts = [_text(axis.key, value) for axis, value in zip(axes, point, strict=True)]
        whole = tuple(text for axis, text in zip(axes, texts, strict=True) if not _cheap(axis))
        if whole not in composed:
            # The first point of a combination is composed with everything, so that Hydra checks every key once.
            config.compose(job, texts, config_dirs, primary)
            composed[whole] = config.compose(job, whole, config_dirs, primary)
        base = composed[whole]
        cfg = copy.deepcopy(base.cfg)
        for axis, text in zip(axes, texts, strict=True):
            if _cheap(axis):
                _apply(cfg, axis.key, parser.parse_override(text))
        yield Cell(texts, cfg, base.choices)


def _cheap(axis: _Axis) -> bool:
    return axis.is_plain and len(axis.values) > 1


def _text(key: str, value: str) -> str:
    return key if key.startswith("~") and not value else f"{key}={value}"


def _apply(cfg: DictConfig, key: str, override: Override) -> None:
    OmegaConf.set_struct(cfg, True)
    try:
        OmegaConf.update(cfg, key, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError(key, f"{str(error).splitlines()[0]}.") from error
    finally:
        OmegaConf.set_struct(cfg, False)
