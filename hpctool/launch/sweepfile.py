"""Writing a sweep's sweep.json from its plan: whole configurations once, and for each cell what differs."""

from __future__ import annotations

from typing import Any

from hpctool import files
from hpctool.launch import snapshot
from hpctool.launch.cells import SWEEP_FORMAT, Sweep, read_sweep, sweeps_folder
from hpctool.launch.plan import Plan, record
from hpctool.rundir import now, who


def write_sweep(plan: Plan, code: dict[str, Any], *, ranks_of: str = "") -> Sweep:
    """Write a plan's sweep.json, once; an equal sweep that is there is returned. Raises OSError.

    `ranks_of` is the job whose runs the cells work off, which says how their ranks are joined.
    """
    path = sweeps_folder(plan.runs) / plan.sweep_id
    target = path / "sweep.json"
    if target.exists():
        return read_sweep(path)
    bases: list[dict[str, Any]] = []
    cells = []
    for index, cell in enumerate(plan.cells):
        number, own_values = _fitting_base(bases, cell.plain)
        own = record(plan, cell, code)
        shared = {key: own.pop(key) for key in ("job", "name", "varied", "sweep", "code", "cwd")}
        own |= {"ranks_of": ranks_of} if ranks_of else {}
        own.update(index=index, run=cell.run_id, base=number, set=own_values)
        cells.append(own)
    body = {"format": SWEEP_FORMAT, "id": plan.sweep_id, "created": now(), "by": who()}
    body |= {"overrides": plan.request.overrides, **shared, "bases": bases, "cells": cells}
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path / "environment.txt", snapshot.installed_packages())
    files.write_json(target, body)
    return Sweep(path, body)


def _fitting_base(bases: list[dict[str, Any]], plain: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The number of a base with the same keys, added if there is none, and the values in which `plain` differs."""
    for number, base in enumerate(bases):
        own = _difference(base, plain)
        if own is not None:
            return number, own
    # Other choices make other keys.
    bases.append(plain)
    return len(bases) - 1, {}


def _difference(base: dict[str, Any], plain: dict[str, Any], prefix: str = "") -> dict[str, Any] | None:
    """The values of `plain` that are not those of `base`, with dotted keys; None where the keys differ."""
    if base.keys() != plain.keys():
        return None
    own: dict[str, Any] = {}
    for key, value in plain.items():
        before = base[key]
        if before is value:
            continue  # cells share what is alike
        both = isinstance(value, dict) and isinstance(before, dict)
        # What lies below a key with a dot of its own has no dotted name: such a dict is one value.
        if both and not any("." in str(name) for name in value):
            inner = _difference(before, value, f"{prefix}{key}.")
            if inner is None:
                return None
            own.update(inner)
        elif not both and (isinstance(value, dict) or isinstance(before, dict)):
            return None
        # 1, 1.0 and true are equal, but not the same.
        elif repr(before) != repr(value):
            own[f"{prefix}{key}"] = value
    return own
