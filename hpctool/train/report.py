"""What an evaluation leaves for people and for later tests: tables, a picture, and every prediction.

artifacts/
  report.json        overall and per class: precision, recall, F1, support; the bins of the calibration error
  confusion.csv      rows: the true class, columns: the predicted one; counts
  confusion.png      the same as a picture, each row as shares of its class
  predictions.npz    uid, row, label, predicted, confidence of every sample, for paired tests

N rows, K classes
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.rundir import RunDir
from hpctool.train.scores import expected_calibration_error, nll, reliability, softmax

#: More classes than this and the numbers in the picture's cells would not be legible.
_MAX_NUMBERED = 20


@dataclass(frozen=True)
class Predicted:
    """What a model said about the rows of a split."""

    uids: list[str]
    #: int64 (N,), the dataset's
    rows: npt.NDArray[np.int64]
    #: int64 (N,), -1 where it is missing
    labels: npt.NDArray[np.int64]
    #: float32 (N, K)
    logits: npt.NDArray[np.float32]
    classes: list[str]

    def labelled(self) -> Predicted:
        """The rows that have a label."""
        known = np.flatnonzero(self.labels >= 0)
        uids = [self.uids[number] for number in known]
        return Predicted(uids, self.rows[known], self.labels[known], self.logits[known], self.classes)


def measure(predicted: Predicted, num_bins: int) -> dict[str, Any]:
    """report.json: every number of the evaluation, over the rows that have a label (at least one)."""
    from sklearn.metrics import precision_recall_fscore_support

    known = predicted.labelled()
    said_N = known.logits.argmax(1)
    bins = reliability(softmax(known.logits), known.labels, num_bins)
    indices = range(len(known.classes))
    columns = precision_recall_fscore_support(known.labels, said_N, labels=list(indices), zero_division=0.0)
    names = ("precision", "recall", "f1", "support")
    per_class = {
        known.classes[k]: {name: column[k].item() for name, column in zip(names, columns, strict=True)} for k in indices
    }
    return {
        "format": 1,
        "rows": len(predicted.rows),
        "labelled": len(known.rows),
        "accuracy": float((said_N == known.labels).mean()),
        "macro_f1": float(np.mean(columns[2])),
        "nll": nll(known.logits, known.labels),
        "ece": expected_calibration_error(bins),
        "per_class": per_class,
        "confusion": confusion(known).tolist(),
        "calibration_bins": [asdict(b) for b in bins],
    }


def confusion(known: Predicted) -> npt.NDArray[np.int64]:
    """Counts, int64 (K, K): true class × predicted class."""
    counts_KK = np.zeros((len(known.classes), len(known.classes)), np.int64)
    np.add.at(counts_KK, (known.labels, known.logits.argmax(1)), 1)
    return counts_KK


def write(rundir: RunDir, predicted: Predicted, report: dict[str, Any]) -> list[str]:
    """Write the artifacts; their paths within the run folder. Raises OSError."""
    counts_KK = np.array(report["confusion"])
    files.write_json(rundir.artifact("report.json"), report)
    files.write_atomic(rundir.artifact("confusion.csv"), _table(counts_KK, predicted.classes))
    files.write_atomic(rundir.artifact("confusion.png"), _picture(counts_KK, predicted.classes))
    files.write_atomic(rundir.artifact("predictions.npz"), _predictions(predicted))
    return [f"artifacts/{name}" for name in ("report.json", "confusion.csv", "confusion.png", "predictions.npz")]


def text(report: dict[str, Any]) -> str:
    """The per-class table as plain text."""
    width = max(8, *(len(name) for name in report["per_class"]))
    lines = [f"{'class':<{width}}  precision  recall      f1  support"]
    for name, row in report["per_class"].items():
        numbers = f"{row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7d}"
        lines.append(f"{name:<{width}}  {numbers}")
    return "\n".join(lines)


def _table(counts_KK: npt.NDArray[np.int64], classes: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["true \\ predicted", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, counts_KK.tolist(), strict=True))
    return out.getvalue()


def _predictions(predicted: Predicted) -> bytes:
    out = io.BytesIO()
    p_NK = softmax(predicted.logits)
    np.savez_compressed(
        out,
        uid=np.array(predicted.uids),
        row=predicted.rows,
        label=predicted.labels,
        predicted=p_NK.argmax(1),
        confidence=p_NK.max(1).astype(np.float32),
    )
    return out.getvalue()


def _picture(counts_KK: npt.NDArray[np.int64], classes: list[str]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = len(classes)
    side = min(14.0, 3.0 + 0.4 * size)
    figure = Figure(figsize=(side + 0.8, side), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    image = axes.imshow(share_KK, cmap="Blues", vmin=0.0, vmax=1.0)
    every = max(1, size // 40)
    ticks = list(range(0, size, every))
    upright = max(len(name) for name in classes) > 3
    axes.set_xticks(ticks, [classes[k] for k in ticks], rotation=90 if upright else 0, parse_math=False)
    axes.set_yticks(ticks, [classes[k] for k in ticks], parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = np.trace(counts_KK) / max(1, counts_KK.sum())
    axes.set_title(f"{counts_KK.sum()} samples, accuracy {right:.4f}")
    if size <= _MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts_KK):
            if count:
                color = "white" if share_KK[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    figure.colorbar(image, ax=axes, label="share of the true class", fraction=0.046)
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()
