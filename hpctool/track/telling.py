"""What a program that knows nothing else of hpctool says of its progress: `hpctool.report({"loss": 0.3}, step=12)`.

It writes the metrics file of its run (metrics.py), of which `hpctool run` has told it the folder. No torch, no Hydra.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from hpctool.errors import InputError

#: Which metric a bare number is; a search says so to its trials.
METRIC = "HPCTOOL_METRIC"
_FORMAT = 1


def report(metrics: Mapping[str, float] | float, step: int) -> None:
    """Say numbers of one step: a mapping by name, or one number, which is the metric that is searched for.

    Only rank 0's count; outside of `hpctool run` it does nothing. Raises InputError on what is no number, OSError.
    """
    folder = os.environ.get("HPCTOOL_RUN")
    if not folder or os.environ.get("RANK", "0") != "0":
        return
    named = metrics if isinstance(metrics, Mapping) else {os.environ.get(METRIC, "metric"): metrics}
    try:
        numbers = {str(name): float(value) for name, value in named.items()}
        line = {"s": int(step), "w": round(time.time(), 3), "m": {k: _to_json(v) for k, v in numbers.items()}}
    except (TypeError, ValueError) as error:
        raise InputError(f"hpctool.report takes one number per name and a whole step; {error}.") from error
    attempt = int(os.environ.get("HPCTOOL_ATTEMPT", "1"))
    path = Path(folder) / "metrics" / f"{attempt}.jsonl"
    path.parent.mkdir(exist_ok=True)
    head = b"" if path.exists() else _line({"format": _FORMAT, "attempt": attempt})
    # One write: whoever reads meanwhile sees whole lines, and so does a kill.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, head + _line(line))
    finally:
        os.close(handle)


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
