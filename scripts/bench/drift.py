"""How long drift of a million predictions takes, and how much memory: python scripts/bench/drift.py [rows]"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpctool.export import statistics
from hpctool.export.calibration import Fit
from hpctool.export.reference import reference
from hpctool.monitor.drift import compare
from hpctool.monitor.schema import Monitor
from hpctool.monitor.window import read_window
from hpctool.serve.journal import Journal
from hpctool.serve.writer import JournalWriter
from hpctool.train.scores import softmax

NUM_FEATURES, NUM_CLASSES, SEGMENT_ROWS = 20, 10, 65_536


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(num_rows: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(NUM_FEATURES, NUM_CLASSES)).astype(np.float32)
    x = rng.normal(size=(5_000, NUM_FEATURES)).astype(np.float32)
    found = statistics.input_statistics(x)
    labels = (x @ weights).argmax(axis=1)
    said = reference(found, x @ weights, labels, Fit(1.0), split="val", num_bins=10, num_calibration_bins=15)
    with tempfile.TemporaryDirectory() as folder:
        writer = JournalWriter(Path(folder), model="table@0001", bundle="b" * 64, origin="score", run="score-0123abcd")
        for first in range(0, num_rows, SEGMENT_ROWS):
            rows = min(SEGMENT_ROWS, num_rows - first)
            x = rng.normal(size=(rows, NUM_FEATURES)).astype(np.float32)
            empty = np.full(rows, b"", "S1")
            writer.add(empty, empty, x, softmax(x @ weights).astype(np.float32), x @ weights)
            writer.flush()
        before_mb, start = peak_mb(), time.perf_counter()
        window = read_window(Journal(Path(folder)), Monitor("table@0001", None, None, None, None))
        read_s = time.perf_counter() - start
    start = time.perf_counter()
    report = compare(said, window)
    compare_s = time.perf_counter() - start
    print(
        f"{num_rows:,} predictions, {NUM_FEATURES} features, {len(report.statistics)} statistics, alarm {report.alarm}"
    )
    print(f"read {read_s:.2f} s, compare {compare_s:.2f} s; peak {peak_mb():.0f} MB ({before_mb:.0f} MB before)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
