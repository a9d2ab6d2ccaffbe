"""A search for optuna-dashboard: an SQLite study, written once, afterwards; nothing ever reads it back."""

from __future__ import annotations

import datetime
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool.errors import InputError
from hpctool.search.journal import Journal, Trial
from hpctool.search.samplers import distribution
from hpctool.search.spec import Spec, read_spec

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def to_optuna(folder: Path, target: Path) -> int:
    """Write the search of a sweep's folder as an optuna study into a new SQLite file; gives the number of trials.

    A trial whose end is NaN has failed, for optuna. Raises InputError where the file is there already, or optuna is
    not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise InputError("sweep export --optuna needs optuna: pip install 'hpctool[search]'.")
    if target.exists():
        raise InputError(f"{target} is there already; an export is written once. Name another file, or remove it.")
    import optuna

    spec = read_spec(folder)
    state = Journal(folder, spec).read()
    # Before the file is there: what cannot be said in optuna's words leaves no half of an export behind.
    made = [_trial(spec, trial) for _, trial in sorted(state.trials.items())]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    direction = optuna.study.StudyDirection.MAXIMIZE if spec.mode == "max" else optuna.study.StudyDirection.MINIMIZE
    study = optuna.create_study(storage=f"sqlite:///{target.absolute()}", study_name=spec.id, direction=direction)
    study.set_user_attr("metric", spec.metric)
    study.add_trials(made)
    return len(made)


def _trial(spec: Spec, trial: Trial) -> FrozenTrial:
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    states = {"completed": TrialState.COMPLETE, "failed": TrialState.FAIL, "infeasible": TrialState.FAIL}
    state = states.get(trial.state, TrialState.PRUNED if trial.state in ("paused", "stopped") else TrialState.RUNNING)
    if state == TrialState.COMPLETE and math.isnan(trial.values[spec.last_rung]):
        state = TrialState.FAIL
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for axis in spec.space.axes:
        value = trial.point[axis.key]
        if axis.kind == "choice":
            # People read the values here; lists are texts for optuna.
            names = [one if isinstance(one, str | int | float | bool | None) else repr(one) for one in axis.values]
            value = value if isinstance(value, str | int | float | bool | None) else repr(value)
            distributions[axis.key] = CategoricalDistribution(names)
        else:
            distributions[axis.key] = distribution(axis)
        params[axis.key] = value
    steps = dict(enumerate([*spec.rungs, max(trial.step, *spec.rungs, 1)]))
    values = {steps[rung]: value for rung, value in trial.values.items()}
    made = create_trial(
        state=state,
        value=trial.values[spec.last_rung] if state == TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        intermediate_values=values,
        user_attrs={"run": trial.run, "state": trial.state, "why": trial.why, "hours": trial.used_s / 3600},
    )
    made.datetime_start = datetime.datetime.fromtimestamp(trial.claimed_s)
    return made
