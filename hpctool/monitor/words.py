"""What was found, in sentences for people: on the terminal, in result.json and on top of the report."""

from __future__ import annotations

from hpctool.errors import listing
from hpctool.monitor.accuracy import ASSUMPTION
from hpctool.monitor.drift import Report, Statistic

_KIND = {"input": "what is asked", "output": "how sure the answers are", "prior": "which classes are predicted"}
#: A chance this far from one half is called higher or lower; nearer, the values are spread differently.
_CLEARLY = 0.1


def sentences(report: Report, classes: list[str], num_lost: int) -> list[str]:
    """The verdict first, then what it rests on."""
    said = [verdict(report)]
    for kind, words in _KIND.items():
        drifted = [one for one in report.statistics if one.alarm and one.kind == kind]
        if drifted and kind == "prior":
            said.append(f"Drift in {words}: {_classes(drifted[0], classes)}.")
        elif drifted:
            named = listing((f"{one.name} ({moved(one)})" for one in drifted), limit=4)
            said.append(f"Drift in {words}: {named}.")
    said += _missing(report)
    said += _accuracy(report)
    if num_lost:
        said.append(f"{_rows(num_lost, 'prediction')} of this journal cannot be read and are not counted in.")
    return said


def verdict(report: Report) -> str:
    """One sentence: alarm, none, or too few rows to tell."""
    limits, total = report.limits, len(report.statistics)
    if report.too_few:
        return (
            f"Too few rows to tell: {_rows(report.num_rows, 'prediction')}, "
            f"and nothing is alarmed below {limits.min_rows}."
        )
    rows = f"{_rows(report.num_rows, 'prediction')} against {_rows(report.num_reference_rows, 'reference row')}"
    if not report.alarm:
        return f"No alarm: none of {total} statistics has drifted ({rows})."
    drifted = [one for one in report.statistics if one.alarm]
    have = "has" if len(drifted) == 1 else "have"
    worst = drifted[0]
    return (
        f"ALARM: {len(drifted)} of {total} statistics {have} drifted ({rows}), most of all {worst.name} "
        f"(PSI {worst.effect:.2f}, q {number(worst.q)})."
    )


def moved(one: Statistic) -> str:
    """higher, lower or spread: which way a statistic's values went; empty for classes."""
    if not one.edges:
        return ""
    if abs(one.dominance - 0.5) < _CLEARLY:
        return "spread"
    return "higher" if one.dominance > 0.5 else "lower"


def number(p: float) -> str:
    """A probability as a table shows it: 0.012, or < 0.001."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float) -> str:
    """12.3 %."""
    return f"{100 * share:.1f} %"


def _rows(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _classes(one: Statistic, classes: list[str]) -> str:
    """The classes whose share has changed most."""
    before, after = max(1, sum(one.reference)), max(1, sum(one.now))
    shares = [(a / before, b / after) for a, b in zip(one.reference[:-1], one.now[:-1], strict=True)]
    order = sorted(range(len(shares)), key=lambda k: -abs(shares[k][1] - shares[k][0]))
    changes = (f"'{classes[k]}' from {percent(shares[k][0])} to {percent(shares[k][1])}" for k in order)
    return listing(changes, limit=3)


def _missing(report: Report) -> list[str]:
    """Values that are not a number are said whenever the reference had none of them, alarm or not."""
    found = {one.name: one.now[-1] for one in report.statistics if one.now[-1] and not one.reference[-1]}
    if not found:
        return []
    where = listing((f"{name} ({count:,})" for name, count in found.items()), limit=4)
    return [f"There are values that are not numbers, and the reference had none: {where}."]


def _accuracy(report: Report) -> list[str]:
    if report.accuracy is None:
        return ["The accuracy cannot be estimated: no row has probabilities that are numbers."]
    e, before, was = report.accuracy, report.reference_accuracy, ""
    if before is not None:
        error = percent(report.reference_calibration_error)
        was = f"; on the reference's labels it was {percent(before)}, with a calibration error of {error}"
    between = f"(95 %: {percent(e.low)} to {percent(e.high)})"
    return [f"Estimated accuracy {percent(e.accuracy)} {between}{was}. {ASSUMPTION}"]
