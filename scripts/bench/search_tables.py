"""Tables of curves to search in without training: python scripts/bench/search_tables.py FILE [TABLE …]

hartmann  the published function MF-Hartmann-6 on a grid of 4,096 points, with a strong bias at low fidelity and noise
digits    multi-layer perceptrons on scikit-learn's digits, 324 configurations, validation log loss after 1 to 27 epochs
boosting  gradient boosted trees on its diabetes data, 384 configurations, validation error after 8 to 216 trees

A table is {axes: {name: number of values}, curves: [[27 values] …]}, the last axis varying fastest; less is better.
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.files import write_atomic

NUM_STEPS = 27


def hartmann() -> dict[str, Any]:
    """Hartmann's function in six dimensions, whose weights shift with fidelity (Kandasamy et al. 2017, bias 0.5)."""
    alpha = np.array([1.0, 1.2, 3.0, 3.2])
    a = np.array(
        [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
    )
    p = 1e-4 * np.array(
        [
            [1312, 1696, 5569, 124, 8283, 5886],
            [2329, 4135, 8307, 3736, 1004, 9991],
            [2348, 1451, 3522, 2883, 3047, 6650],
            [4047, 8828, 8732, 5743, 1091, 381],
        ]
    )
    axis = (np.arange(4) + 0.5) / 4
    x = np.stack(np.meshgrid(*[axis] * 6, indexing="ij"), axis=-1).reshape(-1, 1, 6)
    weights = np.exp(-np.sum(a * (x - p) ** 2, axis=-1))
    z = np.arange(1, NUM_STEPS + 1) / NUM_STEPS
    clean = -weights @ (alpha[:, None] - 0.5 * (1 - z))
    noise = np.random.default_rng(0).normal(0, 0.1, clean.shape) * (1 - z)
    return {"axes": {f"x{number}": 4 for number in range(6)}, "curves": np.round(clean + noise, 4).tolist()}


def digits() -> dict[str, Any]:
    """324 perceptrons, trained for 27 epochs each."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(x / 16, y, test_size=0.4, random_state=0, stratify=y)
    values: dict[str, list[Any]] = {
        "lr": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
        "width": [8, 32, 128],
        "batch_size": [16, 64, 256],
        "l2": [1e-5, 1e-3, 1e-1],
        "activation": ["relu", "tanh"],
    }
    curves = []
    for lr, width, batch_size, l2, activation in itertools.product(*values.values()):
        net = MLPClassifier(
            (width,), activation=activation, alpha=l2, batch_size=batch_size, learning_rate_init=lr, random_state=0
        )
        curve = []
        for _ in range(NUM_STEPS):
            net.partial_fit(x_train, y_train, classes=range(10))
            curve.append(round(float(log_loss(y_val, net.predict_proba(x_val))), 5))
        curves.append(curve)
    return {"axes": {name: len(choices) for name, choices in values.items()}, "curves": curves}


def boosting() -> dict[str, Any]:
    """384 ensembles, measured after every eighth of 216 trees."""
    from sklearn.datasets import load_diabetes
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.model_selection import train_test_split

    x, y = load_diabetes(return_X_y=True)
    x_train, x_val, y_train, y_val = train_test_split(x, y, test_size=0.4, random_state=0)
    values: dict[str, list[Any]] = {
        "learning_rate": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
        "max_depth": [1, 2, 3, 5],
        "subsample": [0.3, 0.5, 0.8, 1.0],
        "min_samples_leaf": [1, 5, 15, 40],
    }
    curves = []
    for rate, depth, subsample, leaf in itertools.product(*values.values()):
        trees = GradientBoostingRegressor(
            learning_rate=rate,
            max_depth=depth,
            subsample=subsample,
            min_samples_leaf=leaf,
            n_estimators=8 * NUM_STEPS,
            random_state=0,
        ).fit(x_train, y_train)
        staged = [float(np.sqrt(np.mean((y_val - guess) ** 2))) for guess in trees.staged_predict(x_val)]
        curves.append([round(value, 3) for value in staged[7::8]])
    return {"axes": {name: len(choices) for name, choices in values.items()}, "curves": curves}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    makers = {"hartmann": hartmann, "digits": digits, "boosting": boosting}
    tables = {name: makers[name]() for name in sys.argv[2:] or makers}
    write_atomic(Path(sys.argv[1]), json.dumps(tables, separators=(",", ":")) + "\n")
