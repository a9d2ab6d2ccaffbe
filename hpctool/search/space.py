"""The space that is searched: axes out of Hydra's own sweep grammar, and points in it.

choice(a,b) or a,b     one of these            range(1,9), range(0,1,0.1)     numbers in steps, the end left out
interval(0.1,1)        any number between      int(interval(1,12))            any whole number, both ends included
tag(log,interval(…))   by orders of magnitude

A point is a dict: key → value, as the configuration takes it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, Quote, QuotedString, RangeSweep

from hpctool import files
from hpctool.errors import ConfigError, InputError
from hpctool.launch import grid

Point = dict[str, Any]

#: A grid or a space that is gone through is never larger.
MAX_POINTS = grid.MAX_CELLS


@dataclass(frozen=True)
class Axis:
    """One key and the values that it may take."""

    key: str
    #: choice (`values`), float or int (`low` to `high`, both included)
    kind: str
    values: list[Any] = field(default_factory=list)
    low: float = 0
    high: float = 0
    #: numbers lie `low + n · step`; None: anywhere between
    step: float | None = None
    log: bool = False
    #: a config group: its value chooses a file
    is_group: bool = False

    @property
    def count(self) -> int | None:
        """How many values there are; None: no end of them."""
        if self.kind == "choice":
            return len(self.values)
        if self.kind == "int" and self.step is None:
            return int(self.high - self.low) + 1
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def value(self, index: int) -> Any:
        """The value of that number, of an axis with a count."""
        if self.kind == "choice":
            return self.values[index]
        number = self.low + index * (self.step or 1)
        return int(number) if self.kind == "int" else _tidy(number)

    def at(self, u: float) -> Any:
        """The value at `u` of 0 ≤ u < 1: each part of the axis has its share."""
        if self.log and self.step is None:
            # A whole number has its share from half below to half above it.
            half = 0.5 if self.kind == "int" else 0.0
            low, high = math.log(self.low - half), math.log(self.high + half)
            number = min(max(math.exp(low + u * (high - low)), self.low), self.high)
            return round(number) if self.kind == "int" else number
        if self.count is not None:
            return self.value(min(int(u * self.count), self.count - 1))
        return self.low + u * (self.high - self.low)

    def coordinate(self, value: Any) -> float:
        """The u of `at` that gives this value; of its share the middle."""
        if self.log and self.step is None:
            half = 0.5 if self.kind == "int" else 0.0
            low, high = math.log(self.low - half), math.log(self.high + half)
            return float((math.log(value) - low) / (high - low))
        if self.kind == "choice":
            return ([repr(one) for one in self.values].index(repr(value)) + 0.5) / len(self.values)
        if self.count is not None:
            return float(((value - self.low) / (self.step or 1) + 0.5) / self.count)
        return float((value - self.low) / (self.high - self.low))

    def holds(self, value: Any) -> bool:
        """Whether a value lies on this axis."""
        if self.kind == "choice":
            return any(repr(value) == repr(one) for one in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / (self.step or 1)
        return (self.kind == "float" and self.step is None) or abs(steps - round(steps)) < 1e-6

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """All axes; a point has a value for each."""

    axes: list[Axis]

    @property
    def count(self) -> int | None:
        """How many points there are; None: no end of them."""
        counts = [axis.count for axis in self.axes]
        return None if None in counts else math.prod(n for n in counts if n is not None)

    def at(self, us: Sequence[float]) -> Point:
        """The point at coordinates of 0 ≤ u < 1."""
        return {axis.key: axis.at(u) for axis, u in zip(self.axes, us, strict=True)}

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether a point has a value on every axis, and nothing else."""
        return point.keys() == {a.key for a in self.axes} and all(a.holds(point[a.key]) for a in self.axes)

    def point(self, index: int) -> Point:
        """The point of that number, the last axis varying fastest; for a space with a count."""
        found = {}
        for axis in reversed(self.axes):
            index, position = divmod(index, axis.count or 1)
            found[axis.key] = axis.value(position)
        return {axis.key: found[axis.key] for axis in self.axes}

    def points(self) -> Iterator[Point]:
        """All points of a space with a count."""
        yield from (self.point(index) for index in range(self.count or 0))

    def to_json(self) -> list[dict[str, Any]]:
        return [axis.to_json() for axis in self.axes]

    @classmethod
    def from_json(cls, body: Sequence[Mapping[str, Any]]) -> Space:
        return cls([Axis(**one) for one in body])


def name_of(point: Mapping[str, Any]) -> str:
    """What tells one point from another."""
    return files.canonical_json(point).decode()


def read(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> tuple[Space, list[str]]:
    """The space that overrides span, and those that have one value. Raises ConfigError, InputError, UnknownName."""
    axes, fixed = [], []
    for text, override, is_group in grid.parsed(overrides, config_dirs):
        if not override.is_sweep_override():
            fixed.append(text)
            continue
        axis = _axis(override, is_group)
        if axis.count == 1:
            fixed.append(f"{override.get_key_element()}={text_of(axis.value(0))}")
        else:
            axes.append(axis)
    if not axes:
        raise InputError(
            "This search has nothing to vary. Give at least one key several values: "
            "'optim.lr=tag(log,interval(1e-5,1e-1))' 'model=choice(mlp,cnn)'."
        )
    twice = {axis.key for axis in axes if sum(one.key == axis.key for one in axes) > 1}
    if twice:
        raise ConfigError(min(twice), "it is varied twice.")
    return Space(axes), fixed


def _axis(override: Override, is_group: bool) -> Axis:
    key, sweep = override.key_or_group.lstrip("+"), override.value()
    if override.is_delete() or override.package:
        raise ConfigError(key, "a search takes no ~key and no key@package.")
    tags = set(getattr(sweep, "tags", ()))
    if unknown := tags - {"log"}:
        raise ConfigError(key, f"the tag '{min(unknown)}' means nothing to a search; there is: log.")
    if isinstance(sweep, IntervalSweep):
        return _interval(key, sweep, override.input_line or "", "log" in tags)
    if isinstance(sweep, RangeSweep):
        return _range(key, sweep, "log" in tags)
    if not isinstance(sweep, ChoiceSweep):
        return _choice(key, list(override.sweep_string_iterator()), is_group)
    if tags:
        raise ConfigError(key, "log is for numbers: tag(log,interval(1e-5,1e-1)).")
    values = [grid.unquoted(value) for value in override.sweep_iterator()]
    distinct = [v for n, v in enumerate(values) if repr(v) not in map(repr, values[:n])]
    if is_group:
        distinct = [str(value) for value in distinct]
    elif any(not grid.stands_for_itself(value) for value in distinct):
        raise ConfigError(key, "a search varies numbers, texts, lists and choices of a group, no dicts or references.")
    return _choice(key, distinct, is_group)


def _choice(key: str, values: list[Any], is_group: bool) -> Axis:
    if not values:
        raise ConfigError(key, "there is no value to choose from.")
    return Axis(key, "choice", values, is_group=is_group)


def _interval(key: str, sweep: IntervalSweep, text: str, log: bool) -> Axis:
    # interval(1,12) has floats for ends, whatever was typed; int(interval(1,12)) whole numbers.
    is_whole = isinstance(sweep.start, int)
    typed = re.search(r"interval\([^()]*\)", text)
    if is_whole and typed:
        # Hydra cuts the ends towards 0, which may lie outside: int(interval(0.5,1.4)) would be 0 to 1.
        again = OverridesParser.create().parse_override(f"x={typed[0]}").value()
        assert isinstance(again, IntervalSweep), again
        sweep = again
    low, high = sweep.start, sweep.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(key, f"interval({low},{high}) needs two numbers.")
    if low > high:
        raise ConfigError(key, f"interval({low},{high}) has no point; its ends are swapped: interval({high},{low}).")
    if is_whole and math.ceil(low) > math.floor(high):
        raise ConfigError(key, f"there is no whole number in interval({low},{high}).")
    if is_whole:
        low, high = math.ceil(low), math.floor(high)
    if log and low <= 0:
        raise ConfigError(key, f"on a logarithmic scale interval({low},{high}) must begin above 0.")
    if low == high:
        return _choice(key, [low], is_group=False)
    return Axis(key, "int" if is_whole else "float", [], low, high, None, log)


def _range(key: str, sweep: RangeSweep, log: bool) -> Axis:
    values = list(sweep.range())
    if not values:
        text = f"range({sweep.start},{sweep.stop},{sweep.step})"
        raise ConfigError(key, f"{text} has no value; its end is left out, and its step leads from the start to it.")
    numbers = [_tidy(float(v)) if not isinstance(v, int) else v for v in values]
    low, high, step = min(numbers), max(numbers), abs(sweep.step)
    if len(numbers) == 1:
        return _choice(key, numbers, is_group=False)
    if log:
        raise ConfigError(key, "a range has even steps; for a logarithmic scale write tag(log,int(interval(1,1024))).")
    return Axis(key, "int" if all(isinstance(v, int) for v in numbers) else "float", [], low, high, step)


def text_of(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        )
        return value if plain else str(QuotedString(value, Quote.single).with_quotes())
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _tidy(number: float) -> float:
    """0.3 for 0.30000000000000004, which steps of 0.1 come to."""
    return float(f"{number:.12g}")
