"""report.html: one file that needs nothing else, for a browser without a network and for paper."""

from __future__ import annotations

import datetime
import shlex
from dataclasses import dataclass
from importlib import resources

import jinja2

from hpctool.monitor import charts, words
from hpctool.monitor.drift import Report
from hpctool.monitor.schema import Monitor
from hpctool.monitor.window import Window

#: Histograms that are drawn beside those of confidence and classes; the table has all statistics.
_MAX_CHARTS = 6


@dataclass(frozen=True)
class Look:
    """What was looked at, by which run and when."""

    asked: Monitor
    window: Window
    classes: list[str]
    run: str
    created: str

    @property
    def first(self) -> str:
        """The time of the oldest row."""
        return _utc(float(self.window.time.min()))

    @property
    def last(self) -> str:
        """The time of the newest row."""
        return _utc(float(self.window.time.max()))


def render(report: Report, look: Look, said: list[str]) -> str:
    """The page; every text in it is escaped."""
    text = resources.files("hpctool.monitor").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"q": words.number, "percent": words.percent, "thousands": lambda count: f"{count:,}"}
    return environment.from_string(text).render(
        report=report,
        look=look,
        window=look.window,
        verdict=said[0],
        sentences=said[1:],
        state="few" if report.too_few else "alarm" if report.alarm else "calm",
        answers=_answer_charts(report, look.classes),
        worst=_worst_charts(report),
        moved=words.moved,
        review=_review_command(look.asked),
        max_classes=charts.MAX_CLASSES,
    )


def _review_command(asked: Monitor) -> str:
    """What to type to review the same window."""
    command = ["hpctool", "review", "queue", asked.model]
    for option in ("source", "since", "until"):
        if (value := getattr(asked, option)) is not None:
            command += [f"--{option}", value]
    return shlex.join(command)


def _answer_charts(report: Report, classes: list[str]) -> list[charts.Chart]:
    found = {one.name: one for one in report.statistics}
    prior = found["predicted_class"]
    drawn = [charts.class_shares(prior, classes, report.true_shares, "Predicted classes")]
    if "confidence" in found:
        drawn.insert(0, charts.histogram(found["confidence"], "Confidence of the answers"))
    return drawn


def _worst_charts(report: Report) -> list[charts.Chart]:
    drawn = [one for one in report.statistics if one.name not in ("confidence", "predicted_class")]
    return [charts.histogram(one, f"{one.name} ({one.kind})") for one in drawn[:_MAX_CHARTS]]


def _utc(time_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(time_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
