"""Bar charts as plain numbers, which the template draws as SVG: the reference beside now, in shares of the rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hpctool.monitor.drift import Statistic

WIDTH, HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 6, 10, 24
_FLOOR = HEIGHT - _BOTTOM
#: Labels closer than this many pixels run into each other.
_LABEL_PX = 36
#: Characters of a class's name that stand below its bars.
_NAME_CHARS = 10
#: More classes than this are not drawn.
MAX_CLASSES = 24


@dataclass(frozen=True)
class Bar:
    """A rectangle; `title` is what a mouse over it says."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Label:
    """A text at a position; `title` is the whole of it where it was cut."""

    at: float
    text: str
    title: str = ""


@dataclass
class Chart:
    """What the template needs to draw one."""

    title: str
    alarm: bool
    reference: list[Bar] = field(default_factory=list)
    now: list[Bar] = field(default_factory=list)
    #: the estimated true share of each class, as a short line over its bars
    marks: list[Bar] = field(default_factory=list)
    x_labels: list[Label] = field(default_factory=list)
    y_labels: list[Label] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    floor: int = _FLOOR


def histogram(one: Statistic, title: str) -> Chart:
    """The bins of a statistic from low to high, edges below; the bin of values that are no numbers if it is used."""
    reference, now = one.reference, one.now
    names = _bin_names(one.edges)
    if not (reference[-1] or now[-1]):
        reference, now, names = reference[:-1], now[:-1], names[:-1]
    chart = _bars(title, one.alarm, _shares(reference), _shares(now), names)
    slot = _slot(len(names))
    last = -1e9
    for i, edge in enumerate(one.edges):
        at = _LEFT + (i + 1) * slot
        if at - last >= _LABEL_PX:
            chart.x_labels.append(Label(at, f"{edge:.3g}"))
            last = at
    if len(names) > len(one.edges) + 1:
        chart.x_labels.append(Label(_LEFT + (len(names) - 0.5) * slot, "NaN"))
    return chart


def class_shares(one: Statistic, classes: list[str], true_shares: list[float] | None, title: str) -> Chart:
    """How often each class is predicted; of many classes those whose share has changed most, in their own order."""
    reference, now = _shares(one.reference[:-1]), _shares(one.now[:-1])
    order = sorted(range(len(classes)), key=lambda k: -abs(now[k] - reference[k]))
    shown = sorted(order[:MAX_CLASSES])
    names = [classes[k] for k in shown]
    marks = None if true_shares is None else [true_shares[k] for k in shown]
    chart = _bars(title, one.alarm, [reference[k] for k in shown], [now[k] for k in shown], names, marks)
    slot = _slot(len(names))
    chars = max(1, min(_NAME_CHARS, int(slot / 6.5)))
    for i, name in enumerate(names):
        text = name if len(name) <= chars else name[: max(1, chars - 1)] + "…"
        chart.x_labels.append(Label(_LEFT + (i + 0.5) * slot, text, name))
    return chart


def _bars(
    title: str,
    alarm: bool,
    reference: list[float],
    now: list[float],
    names: list[str],
    marks: list[float] | None = None,
) -> Chart:
    chart = Chart(title, alarm)
    top, step = _scale(max([*reference, *now, *(marks or [])], default=0.0))
    slot = _slot(len(names))
    width = slot * 0.38
    for i, name in enumerate(names):
        left = _LEFT + i * slot + slot * 0.11
        chart.reference.append(_bar(left, width, reference[i] / top, f"{name}: reference {100 * reference[i]:.1f} %"))
        chart.now.append(_bar(left + width + 1, width, now[i] / top, f"{name}: now {100 * now[i]:.1f} %"))
        if marks is not None:
            said = f"{name}: {100 * marks[i]:.1f} % in truth, if only the classes' shares have changed"
            chart.marks.append(_bar(left - 1, 2 * width + 3, marks[i] / top, said))
    for k in range(round(top / step) + 1):
        share = k * step
        chart.y_labels.append(Label(_height(share / top), f"{100 * share:.3g} %"))
    return chart


def _bar(x: float, width: float, part: float, title: str) -> Bar:
    y = _height(part)
    return Bar(round(x, 1), y, round(width, 1), round(_FLOOR - y, 1), title)


def _height(part: float) -> float:
    return round(_FLOOR - part * (_FLOOR - _TOP), 1)


def _slot(count: int) -> float:
    return (WIDTH - _LEFT - _RIGHT) / max(1, count)


def _shares(counts: list[int]) -> list[float]:
    total = max(1, sum(counts))
    return [count / total for count in counts]


def _scale(highest: float) -> tuple[float, float]:
    """The top of an axis of shares, and the step between its lines: two to five of them."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25):
        if highest <= 4 * step:
            lines = next(n for n in (2, 3, 4) if highest <= n * step)
            return lines * step, step
    return 1.0, 0.25


def _bin_names(edges: list[float]) -> list[str]:
    """What each bin holds, in words; the last is that of values that are no numbers."""
    if not edges:
        return ["any number", "not a number"]
    between = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
    return [f"up to {edges[0]:.3g}", *between, f"above {edges[-1]:.3g}", "not a number"]
