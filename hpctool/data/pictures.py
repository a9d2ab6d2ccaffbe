"""Pictures of versions: which labels changed into which, and how classes and features are spread over the splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data.diff import Diff
from hpctool.data.labels import NO_LABEL_TEXT
from hpctool.data.version import Version
from hpctool.errors import InputError

_MOST_CLASSES = 40  # of which each is named in a picture
_MOST_FEATURES = 40
_COLORS = ("#31688e", "#d1733c", "#35b779", "#8f5aa8", "#b8b12f", "#7f7f7f")


def check_picture(path: Path) -> None:
    """Raises InputError unless the name ends with a format of pictures and nothing is there."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"A picture's name ends with .png, .svg or .pdf, not '{path.name}'.")
    if path.exists():
        raise InputError(f"{path} is there already, and a picture writes over nothing; choose another name.")


def draw_label_changes(diff: Diff, path: Path) -> None:
    """Labels before (rows) and after (columns), of those that changed: the number of rows, the most in the darkest."""
    check_picture(path)
    counts = {(old or NO_LABEL_TEXT, new or NO_LABEL_TEXT): count for old, new, count in diff.label_counts()}
    names = sorted({name for pair in counts for name in pair}, key=lambda name: (name == NO_LABEL_TEXT, name))
    table = np.zeros((len(names), len(names)), np.int64)
    for (old, new), count in counts.items():
        table[names.index(old), names.index(new)] = count

    side = min(14.0, 3.0 + 0.45 * len(names))
    figure, axes = _figure(side + 0.8, side)
    axes.imshow(table, cmap="Blues", vmin=0, vmax=max(1, table.max()))
    every = max(1, len(names) // _MOST_CLASSES)
    ticks = list(range(0, len(names), every))
    shown = [_cut(names[k]) for k in ticks]
    axes.set_xticks(ticks, shown, rotation=90 if max(map(len, shown), default=0) > 3 else 0, parse_math=False)
    axes.set_yticks(ticks, shown, parse_math=False)
    axes.set_xlabel(f"label in {diff.b}", parse_math=False)
    axes.set_ylabel(f"label in {diff.a}", parse_math=False)
    axes.set_title(f"labels changed: {len(diff.relabelled):,}")
    if len(names) <= _MOST_CLASSES:
        for (row, column), number in np.ndenumerate(table):
            if number:
                color = "white" if number > table.max() / 2 else "black"
                axes.text(column, row, str(number), ha="center", va="center", color=color)
    _save(figure, path)


def draw_statistics(version: Version, path: Path) -> None:
    """The share of each class in each split, and each feature's mean and spread by split, on its own scale."""
    check_picture(path)
    splits = {name: version.contents.stats["splits"][name] for name, rows in version.splits.items() if rows}
    features = sorted({name for said in splits.values() for name in said["features"]})[:_MOST_FEATURES]
    panels = [draw for draw, there in ((_classes, version.classes), (_features, features)) if there]
    if not panels:
        raise InputError(f"{version.ref} has neither classes nor features of numbers to draw.")
    width = min(18.0, 5.0 + 0.35 * max(len(version.classes), len(features)))
    figure, _ = _figure(width, 3.6 * len(panels), axes=False)
    for number, draw in enumerate(panels):
        draw(figure.add_subplot(len(panels), 1, number + 1), version, splits, features)
    figure.suptitle(f"{version.pinned}: {version.num_rows:,} rows", parse_math=False)
    figure.tight_layout()
    _save(figure, path)


def _classes(axes: Any, version: Version, splits: dict[str, Any], features: list[str]) -> None:
    names = version.classes
    bar = 0.8 / len(splits)
    for number, (split, said) in enumerate(splits.items()):
        counts = np.array(said["classes"])
        places = np.arange(len(names)) - 0.4 + bar * (number + 0.5)
        share = counts / max(1, counts.sum())
        unlabelled = f", {said['unlabelled']:,} without a label" if said["unlabelled"] else ""
        label = f"{split} ({said['rows']:,}{unlabelled})"
        axes.bar(places, share, width=bar, label=label, color=_COLORS[number % len(_COLORS)])
    every = max(1, len(names) // _MOST_CLASSES)
    shown = [_cut(name) for name in names[::every]]
    upright = max(map(len, shown)) > 4
    axes.set_xticks(range(0, len(names), every), shown, rotation=90 if upright else 0, parse_math=False)
    axes.set_ylabel("share of the split's labels")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _features(axes: Any, version: Version, splits: dict[str, Any], features: list[str]) -> None:
    first = next(iter(splits))
    for number, (split, said) in enumerate(splits.items()):
        offset = (number - (len(splits) - 1) / 2) * 0.8 / len(splits)
        for place, feature in enumerate(features):
            # On the scale of the first split: features have units of their own.
            base, moments = splits[first]["features"].get(feature), said["features"].get(feature)
            if base and moments and moments["count"]:
                scale = base["std"] or 1.0
                middle, spread = (moments["mean"] - base["mean"]) / scale, moments["std"] / scale
                color = _COLORS[number % len(_COLORS)]
                label = split if place == 0 else None
                axes.errorbar(place + offset, middle, yerr=spread, fmt="o", ms=4, capsize=2, color=color, label=label)
    axes.axhline(0, color="0.8", lw=1, zorder=0)
    upright = max(map(len, features)) * len(features) > 90
    axes.set_xticks(range(len(features)), [_cut(f) for f in features], rotation=90 if upright else 0, parse_math=False)
    axes.set_xlim(-0.6, len(features) - 0.4)
    axes.set_ylabel(f"mean ± std, in std of {first}", parse_math=False)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _cut(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if axes else None


def _save(figure: Any, path: Path) -> None:
    # No date in the file: the same version gives the same picture.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    figure.savefig(path, bbox_inches="tight", metadata=metadata)
