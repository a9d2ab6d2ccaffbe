"""Expanding Hydra's sweep grammar (`a=1,2`, `range(…)`, `choice(…)`, `glob(…)`) into cells.

Composing takes 70 ms, so it is done once for each combination of group choices, with the first value of every other
key; a cell then names its combination and its values. What the values change is the business of template.py.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import HydraException, OverrideParseException

from hpctool import config
from hpctool.errors import ConfigError, InputError, UnknownName

#: More cells than any cluster's user wants by accident (`range(1,1000000)`).
MAX_CELLS = 100_000


@dataclass(frozen=True)
class Combination:
    """What cells of the same group choices share: the composed config, and the keys in which they differ.

    It is composed with the first value of each of `keys`, and neither typed nor resolved.
    """

    composed: config.Composed
    keys: list[str]


@dataclass(frozen=True)
class Cell:
    """One point of a grid: its overrides as strings, its combination, and the values of the combination's keys."""

    overrides: list[str]
    combination: Combination
    values: tuple[Any, ...]
    #: the position of each value among its key's: a name for the value that can be compared and hashed
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """One override: its key as typed (`+key`, `~key` too) and its values, as texts and, where cheap, as objects."""

    key: str
    texts: list[str]
    is_group: bool = False
    #: None: these values need composing (a group, a dict, an interpolation)
    values: list[Any] | None = None

    @property
    def name(self) -> str:
        """The key without the signs before it."""
        return self.key.lstrip("+~")


@dataclass(frozen=True)
class Grid:
    """A sweep as it was typed."""

    axes: list[Axis]
    job: str
    config_dirs: Sequence[Path] = ()
    primary: str = ""
    _composed: dict[tuple[int, ...], Combination] = field(default_factory=dict)

    @property
    def varied(self) -> list[str]:
        """The keys that have several values, as typed."""
        return [axis.key for axis in self.axes if len(axis.texts) > 1]

    @property
    def count(self) -> int:
        """How many cells there are."""
        return math.prod(len(axis.texts) for axis in self.axes)

    def cells(self) -> Iterator[Cell]:
        """All cells in the order of the arguments, the last varying fastest. Raises ConfigError, UnknownName."""
        cheap = [number for number, axis in enumerate(self.axes) if axis.values is not None]
        values = {number: axis.values or [] for number, axis in enumerate(self.axes)}
        for point in itertools.product(*(range(len(axis.texts)) for axis in self.axes)):
            first = tuple(0 if number in cheap else position for number, position in enumerate(point))
            if first not in self._composed:
                self._composed[first] = self._compose(first, cheap)
            positions = tuple(point[number] for number in cheap)
            chosen = tuple(values[number][point[number]] for number in cheap)
            yield Cell(self._texts(point), self._composed[first], chosen, positions)

    def _compose(self, point: tuple[int, ...], cheap: list[int]) -> Combination:
        composed = config.compose(self.job, self._texts(point), self.config_dirs, self.primary)
        return Combination(composed, [self.axes[number].name for number in cheap])

    def _texts(self, point: Sequence[int]) -> list[str]:
        return [_text(axis.key, axis.texts[position]) for axis, position in zip(self.axes, point, strict=True)]


def expand(job: str, overrides: Sequence[str], config_dirs: Sequence[Path] = (), primary: str = "") -> Grid:
    """Read what was typed. Raises ConfigError, UnknownName, InputError."""
    axes = _axes(overrides, config_dirs)
    grid = Grid([_cheapest(axis, axes) for axis in axes], job, config_dirs, primary)
    if grid.count > MAX_CELLS:
        raise InputError(f"This sweep has {grid.count:,} cells; {MAX_CELLS:,} are the most. Vary less at once.")
    return grid


def refuse_sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> None:
    """Say that `-m` is missing where an override holds several values. Raises ConfigError."""
    for axis in _axes(overrides, config_dirs):
        if len(axis.texts) > 1:
            quoted = f"'{axis.key}=\"{','.join(axis.texts)}\"'"
            hint = f"Add -m for a sweep over them; one text with a comma is quoted twice: {quoted}"
            raise ConfigError(axis.key, f"it has {len(axis.texts)} values. {hint}")


def parsed(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[tuple[str, Override, bool]]:
    """Each override as it was typed, as Hydra reads it, and whether it chooses of a group. Raises ConfigError."""
    found = []
    with config.hydra_context(config_dirs):
        loader = GlobalHydra.instance().config_loader()
        parser = OverridesParser.create(config_loader=loader)
        for text in overrides:
            try:
                override = parser.parse_overrides([text])[0]
                found.append((text, override, bool(loader.get_group_options(override.key_or_group))))
            except OverrideParseException as error:
                raise config.unreadable(text, error) from error
            except HydraException as error:
                raise ConfigError(text, f"{str(error).splitlines()[0]}.") from error
    return found


def _axes(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[Axis]:
    axes = []
    for text, override, is_group in parsed(overrides, config_dirs):
        try:
            texts = _values(override)
        except HydraException as error:
            raise ConfigError(text, f"{str(error).splitlines()[0]}.") from error
        objects = None if is_group or override.is_delete() or override.package else _objects(override)
        axes.append(Axis(override.get_key_element(), texts, is_group, objects))
    return axes


def _values(override: Override) -> list[str]:
    if override.is_delete() and not override.is_sweep_override():
        return [override.get_value_element_as_str() if override.value() is not None else ""]
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(
            override.key_or_group,
            "an interval has no end of values; a grid needs a list or a range, and search=asha or another search=… "
            "draws from it.",
        )
    values = list(override.sweep_string_iterator())
    if not values:
        raise UnknownName("value matching", str(override.input_line), [])
    return values


def _objects(override: Override) -> list[Any] | None:
    """The values of a sweep as Python objects, if each is a scalar or a list that stands for itself."""
    kinds = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)
    if override.value_type not in kinds or getattr(override.value(), "shuffle", False):
        return None
    values = [unquoted(value) for value in override.sweep_iterator()]
    return values if all(map(stands_for_itself, values)) else None


def unquoted(value: Any) -> Any:
    """A value of Hydra's grammar as the configuration takes it."""
    if isinstance(value, list):
        return [unquoted(item) for item in value]
    return value.text if isinstance(value, QuotedString) else value


def stands_for_itself(value: Any) -> bool:
    """Whether a value is a scalar or a list that composing does not change."""
    if isinstance(value, list):
        return all(map(stands_for_itself, value))
    if isinstance(value, str):
        return "${" not in value and "\\" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _cheapest(axis: Axis, axes: list[Axis]) -> Axis:
    """The axis without its objects where there is one value, or another override touches the same key."""
    alone = not any(other is not axis and not other.is_group and _overlap(axis.name, other.name) for other in axes)
    return axis if len(axis.texts) > 1 and alone else Axis(axis.key, axis.texts, axis.is_group)


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _text(key: str, value: str) -> str:
    return key if key.startswith("~") and not value else f"{key}={value}"
