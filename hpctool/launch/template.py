"""Planning the cells of a sweep without typing, resolving and checking everything for each of them.

Cells of one combination of group choices differ in the values of a few keys. The combination is composed and typed
once; then each of these keys is made an interpolation that notes that it was read (`${hpctool.varied:2}`). The stages
of planning (limits, the job's `resolve`) run on that, so it is known which of the values each looked at, directly or
through other interpolations: for cells with the same values of *those* keys it would do the same again, and does not
run. What refers to a varied key without being one is worked out for each cell.

Whatever does not go well here is planned once more in the ordinary way, which then says what is the matter.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ReadonlyConfigError

from hpctool import config
from hpctool.launch.grid import Cell, Combination
from hpctool.launch.job import Resolved, Stage

T = TypeVar("T")
Keys = tuple[str, ...]
Plain = dict[str, Any]

_RESOLVER = "hpctool.varied"


class NotHere(Exception):
    """This cell has to be planned in the ordinary way."""


@dataclass
class _Reading:
    values: Sequence[Any] = ()
    slots: set[int] = field(default_factory=set)


_now = _Reading()


def _read(slot: int) -> Any:
    _now.slots.add(slot)
    value = _now.values[slot]
    return OmegaConf.create(value) if isinstance(value, list) else value


OmegaConf.register_new_resolver(_RESOLVER, _read, replace=True)


@contextmanager
def _reading(values: Sequence[Any]) -> Iterator[set[int]]:
    """Within, varied keys have these values; the set that is given fills with the numbers of those that were read."""
    global _now
    before, _now = _now, _Reading(values)
    try:
        yield _now.slots
    finally:
        _now = before


class _Memory(Generic[T]):
    """What a function of a cell's values gave, found again by those values that it had read."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], dict[tuple[int, ...], T]] = {}

    def get(self, positions: tuple[int, ...]) -> T | None:
        for slots, results in self._known.items():
            found = results.get(tuple(positions[slot] for slot in slots))
            if found is not None:
                return found
        return None

    def put(self, positions: tuple[int, ...], slots: set[int], result: T) -> None:
        key = tuple(sorted(slots))
        self._known.setdefault(key, {})[tuple(positions[slot] for slot in key)] = result


@dataclass
class _Trace:
    """A config that is behind all stages, as far as it is the same for the cells that came here."""

    plain: Plain
    #: where the varied keys themselves stand
    direct: list[tuple[Keys, int]]
    #: where something stands that refers to them, and what it was for which values
    derived: list[tuple[Keys, _Memory[list[Any]]]]


class _State:
    """A config after some of the stages. It is read-only: a stage that changes something leads to another state."""

    def __init__(self, cfg: DictConfig, answer: Resolved) -> None:
        OmegaConf.set_readonly(cfg, True)
        self.cfg = cfg
        self.answer = answer
        self.after: dict[int, _Memory[_State]] = {}
        self.others: dict[str, _State] = {}
        self.trace: _Trace | None = None

    def run(self, stage: Stage, values: Sequence[Any]) -> tuple[_State, set[int]]:
        """The state that a stage leads to, and the varied keys that it looked at."""
        cfg = self.cfg
        try:
            with _reading(values) as slots:
                said = stage(cfg)
        except ReadonlyConfigError:
            cfg = copy.deepcopy(self.cfg)
            OmegaConf.set_readonly(cfg, False)
            with _reading(values) as slots:
                said = stage(cfg)
        if cfg is self.cfg and not said:
            return self, slots
        # Many values may come to the same: then what follows is done once for all of them.
        name = repr((said, None if cfg is self.cfg else OmegaConf.to_container(cfg, resolve=False)))
        return self.others.setdefault(name, _State(cfg, self.answer + (said or Resolved()))), slots


class Template:
    """The cells of one combination, to be taken through the stages of planning (launch/job.py).

    With `resolved`, only the interpolations below these keys are worked out; the others stay as they are written.
    """

    def __init__(
        self,
        combination: Combination,
        schema: type,
        stages: Sequence[Stage],
        *,
        resolved: Collection[str] | None = None,
    ) -> None:
        self.keys = combination.keys
        self.stages = stages
        self.resolved = resolved
        cfg = config.typed(combination.composed.cfg, schema)
        config.check_complete(cfg)
        self._scratch = copy.deepcopy(cfg)
        self._converted: list[dict[int, Any]] = [{} for _ in self.keys]
        for slot, key in enumerate(self.keys):
            # A group of keys that is replaced as a whole is another thing than a value.
            if isinstance(OmegaConf.select(cfg, key), DictConfig):
                raise NotHere
            OmegaConf.update(cfg, key, _mark(slot))
        self._start = _State(cfg, Resolved())

    def plan(self, cell: Cell) -> tuple[Plain, Resolved]:
        """A cell's plain config, and what `resolve` found. Cells share what is alike, so neither may be changed.

        Raises NotHere, and whatever the values raise.
        """
        values = [self._convert(*one) for one in zip(range(len(self.keys)), cell.positions, cell.values, strict=True)]
        state = self._start
        for number, stage in enumerate(self.stages):
            memory = state.after.setdefault(number, _Memory())
            after = memory.get(cell.positions)
            if after is None:
                after, slots = state.run(stage, values)
                memory.put(cell.positions, slots, after)
            state = after
        state.trace = state.trace or _trace(state.cfg, values, self.resolved)
        own = {path: values[slot] for path, slot in state.trace.direct}
        for path, known in state.trace.derived:
            own[path] = _derived(state.cfg, path, known, values, cell.positions)
        return config.overlaid(state.trace.plain, own), state.answer

    def _convert(self, slot: int, position: int, value: Any) -> Any:
        """A value in the type of its key."""
        known = self._converted[slot]
        if position not in known:
            OmegaConf.update(self._scratch, self.keys[slot], value)
            found = OmegaConf.select(self._scratch, self.keys[slot])
            known[position] = OmegaConf.to_container(found) if isinstance(found, ListConfig) else found
        return known[position]


def _mark(slot: int) -> str:
    return f"${{{_RESOLVER}:{slot}}}"


def _trace(cfg: DictConfig, values: Sequence[Any], resolved: Collection[str] | None) -> _Trace:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    marks = {_mark(slot): slot for slot in range(len(values))}
    trace = _Trace({str(key): value for key, value in plain.items()}, [], [])
    for path, raw in list(_leaves(plain)):
        if isinstance(raw, str) and raw in marks:
            trace.direct.append((path, marks[raw]))
        elif "???" in str(raw):
            raise NotHere
        elif "${" in str(raw) and (resolved is None or path[0] in resolved):
            with _reading(values) as slots:
                _put(trace.plain, path, _evaluated(cfg, path))
            if slots:
                trace.derived.append((path, _Memory()))
    return trace


def _derived(
    cfg: DictConfig, path: Keys, known: _Memory[list[Any]], values: Sequence[Any], positions: tuple[int, ...]
) -> Any:
    found = known.get(positions)
    if found is None:
        with _reading(values) as slots:
            found = [_evaluated(cfg, path)]
        known.put(positions, slots, found)
    return found[0]


def _evaluated(cfg: DictConfig, path: Keys) -> Any:
    found: Any = cfg
    for key in path:
        found = found[key]
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _leaves(plain: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(plain, dict) and plain:
        for key, inner in plain.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, plain


def _put(plain: Plain, path: Keys, value: Any) -> None:
    for key in path[:-1]:
        plain = plain[key]
    plain[path[-1]] = value
