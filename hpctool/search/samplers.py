"""Samplers of other packages as pure functions: what is shown and a seed in, a point out.

Nothing of optuna's storage is used. Its journal file is not crash-safe: one torn line ends a study for ever.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any

from hpctool.errors import InputError
from hpctool.search.propose import OWN
from hpctool.search.shown import VIEW, Shown
from hpctool.search.space import Axis, Point
from hpctool.search.spec import Spec

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

#: optuna wants times; nothing depends on them
_LONG_AGO = datetime.datetime(2000, 1, 1)
_NEEDS = {"tpe": ("optuna",), "gp": ("optuna", "torch", "scipy"), "cmaes": ("cmaes",)}


#: reading what is installed takes a fourth of a proposal
_version = functools.cache(importlib.metadata.version)


def version_of(sampler: str) -> str:
    """Which package draws, its version, and how it is shown the history; empty for our own samplers.

    Raises InputError where the package is missing.
    """
    if sampler in OWN:
        return ""
    missing = [name for name in _NEEDS[sampler] if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"search.sampler={sampler} needs {' and '.join(missing)}: pip install 'hpctool[search]'. "
            "Without it there are search.sampler=random, sobol and grid."
        )
    package = _NEEDS[sampler][0]
    return f"{package} {_version(package)}, view {VIEW}"


def ask(spec: Spec, seen: Shown, seed: int) -> Point:
    """The point that a sampler would try next. Raises InputError where the package is missing."""
    version_of(spec.sampler)
    if spec.sampler == "cmaes":
        return _cmaes(spec, seen, seed)
    import optuna

    space = {axis.key: distribution(axis) for axis in spec.space.axes}
    with _quietly():
        sampler = _sampler(spec, seed)
        # What is searched is known; to find it out from the history takes longer than the proposal itself.
        sampler.infer_relative_search_space = lambda *_: dict(space)  # type: ignore[method-assign]
        study = optuna.create_study(storage=_storage(spec, seen, space), sampler=sampler)
        trial = study.ask(space)
    return {axis.key: _from_optuna(axis, trial.params[axis.key]) for axis in spec.space.axes}


def distribution(axis: Axis) -> BaseDistribution:
    """An axis in optuna's words; a choice is the number of its value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.kind == "choice":
        return CategoricalDistribution(range(len(axis.values)))
    if axis.kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def to_optuna(axis: Axis, value: Any) -> Any:
    """A value as optuna has it."""
    return [repr(one) for one in axis.values].index(repr(value)) if axis.kind == "choice" else value


def _from_optuna(axis: Axis, value: Any) -> Any:
    if axis.kind == "choice":
        return axis.values[int(value)]
    return int(value) if axis.kind == "int" else float(value)


def _sampler(spec: Spec, seed: int) -> BaseSampler:
    from optuna import samplers

    if spec.sampler == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=True)
    return samplers.GPSampler(seed=seed)


def _cmaes(spec: Spec, seen: Shown, seed: int) -> Point:
    """CMA-ES in the unit cube, told all results again in the order of their trials: it keeps nothing between two asks.

    optuna's own keeps its state, as a pickle, in the trials that it has drawn.
    """
    import numpy as np
    from cmaes import CMA  # type: ignore[import-untyped]

    axes = spec.space.axes
    bounds = np.array([[0.0, 1.0]] * len(axes))
    optimizer = CMA(mean=np.full(len(axes), 0.5), sigma=0.25, bounds=bounds, seed=seed)
    told = [
        (np.array([axis.coordinate(point[axis.key]) for axis in axes]), value)
        for point, value in zip(seen.points, seen.values, strict=True)
    ]
    size = optimizer.population_size
    for first in range(0, len(told) - size + 1, size):
        optimizer.tell(told[first : first + size])
        if optimizer.should_stop():
            break
    return spec.space.at([min(float(u), 1 - 1e-9) for u in optimizer.ask()])


def _storage(spec: Spec, seen: Shown, space: dict[str, BaseDistribution]) -> Any:
    """A study in memory that holds what is shown, without the copies that adding trials one by one makes."""
    from optuna.storages import InMemoryStorage
    from optuna.trial import FrozenTrial, TrialState

    def frozen(number: int, point: Point, value: float | None) -> FrozenTrial:
        params = {axis.key: to_optuna(axis, point[axis.key]) for axis in spec.space.axes}
        state = TrialState.RUNNING if value is None else TrialState.COMPLETE
        ended = None if value is None else _LONG_AGO
        return FrozenTrial(number, state, value, _LONG_AGO, ended, params, space, {}, {}, {}, number)

    pairs: list[tuple[Point, float | None]] = list(zip(seen.points, seen.values, strict=True))
    pairs += [(point, None) for point in seen.running]
    told = [frozen(number, point, value) for number, (point, value) in enumerate(pairs)]

    class History(InMemoryStorage):
        def get_all_trials(
            self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
        ) -> list[FrozenTrial]:
            return [trial for trial in told if states is None or trial.state in states]

    return History()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
