"""The one small language in which runs are chosen, the same for list, compare, report, tensorboard and export.

    state=completed optim.lr<1e-3 val/accuracy>0.9 (model=cnn or model~vit*) not seed=3,4 age<7d

Terms side by side must all hold; `or`, `not` and brackets do what they say. A name is a column of the row, a metric
(its last value), a group's choice or a key of the configuration; one that is both a metric and a key is written
`m.name` or `cfg.name`. `min(val/loss)`, `max(…)` and `at(val/loss,1000)` look at a metric's curve. Numbers compare as
numbers, `age` with durations (30m, 12h, 7d), `~` is a pattern with * and ?, and `seed=1,2` is any of several.
"""

from __future__ import annotations

import datetime
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hpctool.errors import InputError, UnknownName
from hpctool.rundir import STATES
from hpctool.track.keys import scalar
from hpctool.track.metrics import read_metrics, same
from hpctool.track.row import BROKEN, FIELDS, Row

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<bracket>[()])
  | (?P<name>(?:(?:min|max|at)\([^()\s]+\))|[^\s()=<>!~"']+)
    (?:\s*(?P<operator><=|>=|!=|!~|=|<|>|~)\s*(?P<value>"[^"]*"|'[^']*'|[^\s()"']+))?
    )""",
    re.VERBOSE,
)
_CURVE = re.compile(r"(min|max|at)\(([^(),\s]+)(?:,(\d+))?\)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
#: of which the beginning is enough
_IDS = ("id", "sweep", "data_commit", "param_digest")
_WORDS = ("and", "or", "not")
_SIGNS = "=<>!~"
_SIZES = ("<", "<=", ">", ">=")

Test = Callable[[Row], bool]


class QueryError(InputError):
    """A query that cannot be read."""

    def __init__(self, query: str, problem: str) -> None:
        self.query = query
        self.problem = problem
        super().__init__(
            f"The query '{query}' cannot be read: {problem}. One that can: 'state=completed optim.lr<1e-3'"
        )


@dataclass(frozen=True)
class Term:
    """One comparison: a name, an operator and the word on its right."""

    name: str
    operator: str
    value: str
    is_quoted: bool = False


@dataclass(frozen=True)
class Query:
    """A query that was read; `terms` are all its comparisons."""

    text: str
    terms: tuple[Term, ...]
    test: Test

    def __call__(self, row: Row) -> bool:
        """Whether a row fits."""
        return self.test(row)


def choose(rows: Sequence[Row], text: str) -> list[Row]:
    """The rows that fit a query; all for an empty one.

    Raises QueryError, and UnknownName where a name is none of any row's, with the nearest that are.
    """
    query = parse(text)
    for term in query.terms:
        _check_name(term, rows)
        _check_kind(term, rows, query.text)
    return [row for row in rows if query(row)]


def parse(text: str) -> Query:
    """Read a query. Raises QueryError."""
    return _Parser(text).query()


class _Parser:
    """Recursive descent over the tokens of a query."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.terms: list[Term] = []
        self.tokens = list(self._split())
        self.position = 0

    def query(self) -> Query:
        test = self._any() if self.tokens else lambda _: True
        if self.position < len(self.tokens):
            raise self._error("a bracket closes that was not opened")
        return Query(self.text, tuple(self.terms), test)

    def _split(self) -> Iterable[Term | str]:
        position = 0
        while self.text[position:].strip():
            found = _TOKEN.match(self.text, position)
            if not found:
                raise self._error(f"'{self.text[position:].strip()}' is no comparison")
            position = found.end()
            name, operator, value = found["name"], found["operator"], found["value"]
            if found["bracket"]:
                yield found["bracket"]
            elif operator:
                quoted = value[0] in "\"'"
                if value[0] in _SIGNS:
                    raise self._error(
                        f"'{name}{operator}{value}' has two operators; equal is {name}=…, and a value that begins "
                        f"with {value[0]} stands in quotes"
                    )
                yield Term(name, operator, value[1:-1] if quoted else value, quoted)
            elif name.lower() in _WORDS:
                yield name.lower()
            else:
                raise self._error(f"'{name}' compares with nothing; write {name}=… or {name}<…")

    def _next(self) -> Term | str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _take(self) -> Term | str | None:
        token = self._next()
        self.position += 1
        return token

    def _any(self) -> Test:
        tests = [self._all()]
        while self._next() == "or":
            self._take()
            tests.append(self._all())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _all(self) -> Test:
        tests = [self._one()]
        while self._next() not in (None, "or", ")"):
            if self._next() == "and":
                self._take()
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        word = self._take()
        if isinstance(word, Term):
            self.terms.append(word)
            return _test_of(word, self._error)
        if word == "not":
            test = self._one()
            return lambda row: not test(row)
        if word == "(":
            test = self._any()
            if self._take() != ")":
                raise self._error("a bracket is not closed")
            return test
        raise self._error(f"something is missing before '{word}'" if word else "it ends where a comparison should be")

    def _error(self, problem: str) -> QueryError:
        return QueryError(self.text, problem)


# ---------------------------------------------------------------------------------------------- one comparison


def _test_of(term: Term, error: Callable[[str], QueryError]) -> Test:
    """The test of one term. Raises QueryError where its value does not fit its operator."""
    if term.operator in ("~", "!~"):
        wanted = term.operator == "~"
        return lambda row: fnmatch.fnmatchcase(_text(value_of(row, term.name)), term.value) == wanted
    words = [term.value] if term.is_quoted else term.value.split(",")
    if term.name == "age":
        return _age_test(term, words[0], error)
    if term.operator in ("=", "!="):
        is_id = term.name in _IDS
        wanted = term.operator == "="
        return lambda row: any(_equal(value_of(row, term.name), word, term, is_id) for word in words) == wanted
    limit = _value(term)
    if limit is None or isinstance(limit, bool) or limit != limit:
        raise error(f"'{term.name}{term.operator}{term.value}' compares the size of what has none")
    return lambda row: _ordered(value_of(row, term.name), term.operator, limit)


def _age_test(term: Term, word: str, error: Callable[[str], QueryError]) -> Test:
    found = _DURATION.fullmatch(word)
    if not found or term.operator not in _SIZES:
        raise error(f"age is compared with a duration, such as age<7d or age>=12h, not '{term.operator}{word}'")
    limit_s = float(found[1]) * _SECONDS[found[2]]
    return lambda row: _ordered(_age_s(row), term.operator, limit_s)


def _age_s(row: Row) -> float | None:
    try:
        made = datetime.datetime.fromisoformat(row.created)
    except ValueError:
        return None
    return (datetime.datetime.now(datetime.UTC) - made).total_seconds()


def _equal(value: Any, word: str, term: Term, is_id: bool) -> bool:
    if is_id:
        return bool(word) and _text(value).startswith(word)
    if term.is_quoted:
        return _text(value) == word
    wanted = scalar(word)
    if isinstance(value, bool) or isinstance(wanted, bool) or wanted is None:
        return value is wanted
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return same(value, wanted)
    return _text(value) == word


def _ordered(value: Any, operator: str, limit: Any) -> bool:
    """Numbers as numbers, words as words; what has no value, or is of the other kind, does not fit."""
    if not _is_alike(value, limit):
        return False
    if operator.startswith("<"):
        return bool(value < limit or (operator == "<=" and value == limit))
    return bool(value > limit or (operator == ">=" and value == limit))


def _is_alike(value: Any, limit: Any) -> bool:
    kind: Any = str if isinstance(limit, str) else int | float
    return isinstance(value, kind) and not isinstance(value, bool)


def _value(term: Term) -> Any:
    return term.value if term.is_quoted else scalar(term.value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


# ---------------------------------------------------------------------------------------------- what a name means


def value_of(row: Row, name: str) -> Any:
    """What a name of a query means for a row; None where it has none."""
    if curve := _CURVE.fullmatch(name):
        return _of_curve(row, curve[1], curve[2], curve[3])
    if name.startswith("m."):
        return row.metrics.get(name[2:])
    if name.startswith("cfg."):
        return row.setting(name[4:])
    if name in FIELDS:
        return getattr(row, name)
    if name in row.metrics:
        return row.metrics[name]
    return row.setting(name)


def _of_curve(row: Row, what: str, metric: str, step: str | None) -> float | None:
    points = read_metrics(row.rundir).get(metric, []) if row.rundir else []
    if what == "at":
        return dict(points).get(int(step or 0))
    numbers = [value for _, value in points if not math.isnan(value)]
    if not numbers:
        return None
    return min(numbers) if what == "min" else max(numbers)


def _check_name(term: Term, rows: Sequence[Row]) -> None:
    """Raise UnknownName for a name that means nothing in any row, and InputError for one that means two things."""
    name = term.name
    if curve := _CURVE.fullmatch(name):
        if (curve[1] == "at") != (curve[3] is not None):
            raise QueryError(name, "it is min(metric), max(metric) or at(metric,step)")
        name = f"m.{curve[2]}"
    if name == "state" and term.operator in ("=", "!="):
        for word in term.value.split(","):
            if word not in (*STATES, BROKEN):
                raise UnknownName("state", word, [*STATES, BROKEN])
    if not rows or name in FIELDS or name == "age":
        return
    kind, _, rest = name.partition(".")
    as_metric = kind != "cfg" and any((rest if kind == "m" else name) in row.metrics for row in rows)
    as_setting = kind != "m" and any(row.has_setting(rest if kind == "cfg" else name) for row in rows)
    if as_metric and as_setting:
        raise InputError(f"'{name}' is a metric and a key of the configuration: write m.{name} or cfg.{name}.")
    if not as_metric and not as_setting:
        known = {key for row in rows for key in (*row.metrics, *row.settings())}
        raise UnknownName("metric or key", rest if kind in ("m", "cfg") else name, sorted({*known, *FIELDS, "age"}))


def _check_kind(term: Term, rows: Sequence[Row], query: str) -> None:
    """Raise QueryError where a size is asked of another kind than all values are: it would fit none without a word."""
    if term.operator not in _SIZES or term.name == "age":
        return
    limit, other = _value(term), None
    for row in rows:
        value = value_of(row, term.name)
        if _is_alike(value, limit):
            return
        other = value if other is None else other
    if other is None:
        return
    asked = f"'{term.name}{term.operator}{term.value}' compares"
    if isinstance(other, str) and not isinstance(limit, str):
        hint = f'in quotes it is text too: {term.name}{term.operator}"{term.value}"'
        raise QueryError(query, f"{asked} a number with text, such as '{other}'; {hint}")
    raise QueryError(query, f"{asked} {'text' if isinstance(limit, str) else 'a number'} with {other!r}")
