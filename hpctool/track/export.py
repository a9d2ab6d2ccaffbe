"""Runs for other tools, afterwards and from files: csv and parquet tables, folders for TensorBoard, mlflow and W&B.

Nothing of this happens inside a job: a tracker that is down, slow or full must not be what ends a training.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import InputError, listing
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics
from hpctool.track.row import FIELDS, Row

#: more links than this make a page of TensorBoard that no browser likes
MAX_TENSORBOARD = 200


def link_event_files(rows: Sequence[Row], folder: Path) -> list[str]:
    """Links named by run to the event files of runs, for `tensorboard --logdir`; gives the ids of those that have any.

    Raises InputError where there are none, or more than 200.
    """
    have = [row for row in rows if row.rundir is not None and row.rundir.tensorboard.is_dir()]
    if not have:
        raise InputError(
            f"None of the {len(rows)} runs has event files; track=tensorboard writes them. "
            "hpctool runs report needs none."
        )
    if len(have) > MAX_TENSORBOARD:
        raise InputError(
            f"{len(have)} runs are more than TensorBoard's page takes ({MAX_TENSORBOARD}). Say more in the query, or "
            "use hpctool runs report."
        )
    for row in have:
        assert row.rundir is not None
        (folder / row.id).symlink_to(row.rundir.tensorboard.absolute(), target_is_directory=True)
    return [row.id for row in have]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and values of a table of runs: the fields, `metric/…`, and `config/…` of every key."""
    metrics = sorted({name for row in rows for name in row.metrics})
    keys = sorted({key for row in rows for key in row.config})
    columns = [*FIELDS, *(f"metric/{name}" for name in metrics), *(f"config/{key}" for key in keys)]
    values = [
        [*(getattr(row, name) for name in FIELDS), *map(row.metrics.get, metrics), *map(row.config.get, keys)]
        for row in rows
    ]
    return columns, values


def curve_table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """One line for each run, metric and step."""
    lines: list[list[Any]] = []
    for row in rows:
        if row.rundir is not None:
            for name, points in read_metrics(row.rundir).items():
                lines += [[row.id, name, step, value] for step, value in points]
    return ["id", "metric", "step", "value"], lines


def write_csv(columns: Sequence[str], values: Sequence[Sequence[Any]], path: Path) -> None:
    """Write a table as csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in line] for line in values])
    files.write_atomic(path, text.getvalue())


def write_parquet(columns: Sequence[str], values: Sequence[Sequence[Any]], path: Path) -> None:
    """Write a table as parquet; a column whose values have several types becomes text, dicts and lists become JSON.

    Raises InputError.
    """
    _need("pyarrow", "parquet")
    import pyarrow as pa
    from pyarrow import parquet

    arrays = [_array(pa, [line[index] for line in values]) for index in range(len(columns))]
    buffer = io.BytesIO()
    parquet.write_table(pa.table(arrays, names=list(columns)), buffer)
    files.write_atomic(path, buffer.getvalue())


def _array(pa: Any, cells: list[Any]) -> Any:
    # Parquet has no struct without fields, and a config's empty dict is one; nor would two runs' lists be of one type.
    cells = [json.dumps(cell, default=str) if isinstance(cell, dict | list) else cell for cell in cells]
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if cell is None else str(cell) for cell in cells])


def to_mlflow(rows: Sequence[Row], uri: str, experiment: str) -> int:
    """Send runs to an mlflow store; one that it has already (by its tag `hpctool.id`) is left. Gives how many are new.

    Raises InputError where mlflow is not installed.
    """
    _need("mlflow", "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    where = found.experiment_id if found else client.create_experiment(experiment)
    sent = 0
    for row in rows:
        if row.rundir is None or client.search_runs([where], f"tags.`hpctool.id` = '{row.id}'", max_results=1):
            continue
        tags = {"hpctool.id": row.id, "hpctool.state": row.state, "mlflow.runName": row.id}
        run_id = client.create_run(where, tags=tags).info.run_id
        _fill_mlflow(client, run_id, row, row.rundir)
        client.set_terminated(run_id, "FINISHED" if row.state == "completed" else "FAILED")
        sent += 1
    return sent


def _fill_mlflow(client: Any, run_id: str, row: Row, rundir: RunDir) -> None:
    from mlflow.entities import Metric, Param

    params = [Param(key, str(value)[:500]) for key, value in row.config.items()]
    points = [Metric(name, value, 0, step) for name, curve in read_metrics(rundir).items() for step, value in curve]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[start : start + 1000])


def to_wandb(rows: Sequence[Row], project: str) -> int:
    """Send runs to Weights & Biases under their own ids, so that asking again sends nothing twice; gives how many.

    Raises InputError where wandb is not installed.
    """
    _need("wandb", "wandb")
    import wandb

    sent = 0
    for row in rows:
        if row.rundir is None:
            continue
        run = wandb.init(project=project, id=row.id, name=row.id, resume="allow", config=dict(row.config))
        by_step: dict[int, dict[str, float]] = {}
        for name, curve in read_metrics(row.rundir).items():
            for step, value in curve:
                by_step.setdefault(step, {})[name] = value
        for step in sorted(step for step in by_step if step > (run.step or -1)):
            run.log(by_step[step], step=step)
        run.finish(exit_code=0 if row.state == "completed" else 1)
        sent += 1
    return sent


def _need(module: str, kind: str) -> None:
    """Raises InputError."""
    if importlib.util.find_spec(module) is None:
        there = [name for name in ("csv", "parquet", "mlflow", "wandb") if name == "csv" or _has(name)]
        raise InputError(
            f"Exporting to {kind} needs the package '{module}', which is not installed here: pip install {module}. "
            f"There is: {listing(there)}."
        )


def _has(kind: str) -> bool:
    return importlib.util.find_spec({"parquet": "pyarrow"}.get(kind, kind)) is not None
