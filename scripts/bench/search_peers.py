"""optuna as it is shipped, and syne-tune's ASHA, on the tables: PEER/bin/python search_peers.py NAME TABLES SEEDS

Prints {table: [[regret at 10, 20, 30 trainings] for each seed]} as JSON. It runs in the peer's own environment.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from search_simulation import NUM_STEPS, Work, index_of, simulate

BUDGETS = [10.0, 20.0, 30.0]


class Optuna:
    """TPESampler and SuccessiveHalvingPruner with their defaults, workers side by side on one study."""

    def __init__(self, table: dict[str, Any], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.axes = optuna, table["axes"]
        self.study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed), pruner=optuna.pruners.SuccessiveHalvingPruner()
        )

    def next_job(self, worker: int) -> Work:
        trial = self.study.ask()
        return Work(trial, index_of(self.axes, {k: trial.suggest_int(k, 0, n - 1) for k, n in self.axes.items()}))

    def on_step(self, worker: int, work: Work, value: float) -> bool:
        work.key.report(value, work.step)
        if work.step == NUM_STEPS:
            self.study.tell(work.key, value)
            return False
        if work.key.should_prune():
            self.study.tell(work.key, state=self.optuna.trial.TrialState.PRUNED)
            return False
        return True


class SyneTune:
    """Its ASHA as its own tuner would drive it."""

    def __init__(self, table: dict[str, Any], seed: int) -> None:
        from syne_tune.config_space import randint
        from syne_tune.optimizer.baselines import ASHA

        self.axes = table["axes"]
        space = {name: randint(0, size - 1) for name, size in self.axes.items()}
        self.scheduler = ASHA(
            space, metric="loss", do_minimize=True, max_t=NUM_STEPS, time_attr="epoch", random_seed=seed
        )
        self.number = 0

    def next_job(self, worker: int) -> Work:
        import datetime

        from syne_tune.backend.trial_status import Trial

        suggestion = self.scheduler.suggest()
        trial = Trial(self.number, suggestion.config, datetime.datetime.now())
        self.number += 1
        self.scheduler.on_trial_add(trial)
        return Work(trial, index_of(self.axes, suggestion.config))

    def on_step(self, worker: int, work: Work, value: float) -> bool:
        result = {"loss": value, "epoch": work.step}
        if work.step == NUM_STEPS:
            self.scheduler.on_trial_complete(work.key, result)
            return False
        return str(self.scheduler.on_trial_result(work.key, result)) == "CONTINUE"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    make = {"optuna": Optuna, "syne-tune": SyneTune}[sys.argv[1]]
    tables = json.loads(Path(sys.argv[2]).read_text())
    print(
        json.dumps(
            {
                name: [simulate(make(table, seed), table, seed, BUDGETS) for seed in range(int(sys.argv[3]))]
                for name, table in tables.items()
            }
        )
    )
