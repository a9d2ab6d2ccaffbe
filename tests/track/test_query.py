"""The query language: what each comparison chooses, and what is said of one that cannot be read."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from hpctool.errors import InputError, UnknownName
from hpctool.track.query import QueryError, choose, parse
from hpctool.track.row import Row, read_row
from tests.track.samples import Sample


def ago(**parts: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(**parts)).isoformat()


def row(run_id: str, state: str = "completed", metrics: dict[str, float] | None = None, **values: object) -> Row:
    plain = {name.replace("__", "."): value for name, value in values.items()}
    metrics = metrics or {}
    return Row(run_id, state=state, metrics=metrics, plain=plain, choices={"model": "cnn"}, created=ago(hours=1))


ROWS = [
    row("train-aa11", optim__lr=0.001, seed=1, note="two words", metrics={"val/accuracy": 0.95}),
    row("train-bb22", optim__lr=0.01, seed=2, note="x/y", flag=True, sizes=[1, 2], metrics={"val/accuracy": 0.85}),
    row("train-cc33", "failed", optim__lr=1e-4, seed=3, missing=None),
]
ROWS[2].choices = {"model": "vit_small"}
ROWS[2].created = ago(days=30)


def ids(query: str) -> str:
    return " ".join(one.id[-4:] for one in choose(ROWS, query))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "chosen"),
    [
        ("", "aa11 bb22 cc33"),
        ("state=completed", "aa11 bb22"),
        ("state=completed optim.lr<1e-2", "aa11"),
        ("optim.lr=0.0010", "aa11"),
        ("optim.lr>=.001 and optim.lr<=0.01", "aa11 bb22"),
        ("optim.lr = 1e-3 or state = failed", "aa11 cc33"),
        ("seed=1,3", "aa11 cc33"),
        ("not seed=1,3", "bb22"),
        ("seed!=1,3", "bb22"),
        ("val/accuracy>0.9", "aa11"),
        ("val/accuracy<=2", "aa11 bb22"),
        ("m.val/accuracy>0.9 cfg.seed=1", "aa11"),
        ("(model=cnn or model~vit*) seed>1", "bb22 cc33"),
        ("model!~vit*", "aa11 bb22"),
        ("not (state=failed or seed=1)", "bb22"),
        ("note='two words'", "aa11"),
        ('note="x/y"', "bb22"),
        ("flag=true", "bb22"),
        ("missing=null", "aa11 bb22 cc33"),
        ("id=train-aa", "aa11"),
        ("age<7d", "aa11 bb22"),
        ("age>=1.5w", "cc33"),
        ("created<2020-01-01", ""),
        ("created>='2026'", "aa11 bb22 cc33"),
        ("note='=x'", ""),
    ],
)
def test_a_query_chooses_what_it_says(query: str, chosen: str) -> None:
    assert ids(query) == chosen


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state", "'state' compares with nothing; write state=… or state<…"),
        ("state=", "compares with nothing"),
        ("(state=failed", "a bracket is not closed"),
        ("state=failed)", "a bracket closes that was not opened"),
        ("not", "it ends where a comparison should be"),
        ("or state=failed", "something is missing before 'or'"),
        ("age<yesterday", "age is compared with a duration"),
        ("age=7d", "age is compared with a duration"),
        ("seed<true", "compares the size of what has none"),
        ("'state=failed", "is no comparison"),
        ("seed==1", "'seed==1' has two operators; equal is seed=…"),
        ("seed=>1", "'seed=>1' has two operators"),
        ("model=~vit*", "'model=~vit*' has two operators"),
        ("val/accuracy<nan", "compares the size of what has none"),
        ("created>=2026", 'in quotes it is text too: created>="2026"'),
        ("seed<abc", "'seed<abc' compares text with 1"),
        ("sizes<3", "'sizes<3' compares a number with [1, 2]"),
        ("flag>0", "'flag>0' compares a number with True"),
    ],
)
def test_a_query_that_cannot_be_read_says_where(query: str, words: str) -> None:
    with pytest.raises(QueryError) as caught:
        choose(ROWS, query)
    assert words in str(caught.value)


def test_a_name_that_no_run_has_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no metric or key 'val/acuracy'.*Did you mean val/accuracy"):
        choose(ROWS, "val/acuracy>0.9")
    with pytest.raises(UnknownName, match=r"no metric or key 'lr'.*Did you mean optim.lr"):
        choose(ROWS, "lr<1")
    with pytest.raises(UnknownName, match="no state 'done'"):
        choose(ROWS, "state=done")
    assert choose([], "anything=1") == []


def test_runs_that_diverged_are_found_by_the_word_nan() -> None:
    rows = [row("train-aa11", metrics={"loss": float("nan")}), row("train-bb22", metrics={"loss": 0.1})]
    assert choose(rows, "loss=nan") == rows[:1]
    assert choose(rows, "loss!=nan") == rows[1:]
    assert choose(rows, f"loss={'9' * 400}") == []


def test_a_name_that_means_two_things_must_say_which() -> None:
    rows = [Row("train-aa11", metrics={"loss": 0.1}, plain={"loss": "mse"})]
    with pytest.raises(InputError, match=r"write m\.loss or cfg\.loss"):
        choose(rows, "loss<1")
    assert choose(rows, "m.loss<1 cfg.loss=mse") == rows


def test_curves_are_asked_for_their_lowest_highest_and_single_points(tmp_path: Path) -> None:
    sample = Sample(tmp_path).begin().log([100, 200, 300])
    rows = [read_row(sample.rundir)]
    assert choose(rows, "max(train/loss)>0.7 min(train/loss)<0.4 at(train/loss,200)<0.52 at(train/loss,200)>0.5")
    assert not choose(rows, "at(train/loss,150)<9")
    with pytest.raises(UnknownName, match="train/loss"):
        choose(rows, "min(train/los)<1")
    with pytest.raises(QueryError, match="at\\(metric,step\\)"):
        choose(rows, "at(train/loss)<1")


def test_a_query_of_thousands_of_terms_is_read_and_hostile_text_is_refused() -> None:
    assert len(parse(" ".join(f"seed!={n}" for n in range(2000))).terms) == 2000
    for text in ("a=b;c", "__import__('os')", "a==b", "=", "a=<b", "((((", "a=1 or or b=2"):
        try:
            parse(text)
        except QueryError:
            continue
