"""Alarms where there is drift and none where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from omegaconf import OmegaConf
from scipy import ndimage

from hpctool.export.calibration import fit_temperature
from hpctool.export.deployed import Deployed
from hpctool.monitor.drift import Limits, Report, Statistic, compare
from hpctool.train.scores import softmax
from tests.monitor.conftest import Digits, Images, Rows, make_reference

CONF = Path(__file__).parents[2] / "conf" / "monitor.yaml"


def contrast(images: Images) -> Images:
    return (images * 0.5).astype(np.uint8)


def blur(images: Images) -> Images:
    return np.asarray(ndimage.gaussian_filter(images, (0, 0.8, 0.8, 0)))


def noise(images: Images) -> Images:
    return (images + np.random.default_rng(0).normal(0, 40, images.shape)).clip(0, 255).astype(np.uint8)


def shift(images: Images) -> Images:
    return np.roll(images, 1, axis=2)


def table(rng: np.random.Generator, num_rows: int) -> npt.NDArray[np.float32]:
    """Feature rows as they are in life: correlated, rounded, constant, with missing values."""
    x = rng.normal(size=(num_rows, 12)).astype(np.float32)
    x[:, 4:8] += 2 * x[:, :1]
    x[:, 8] = np.round(x[:, 8])
    x[:, 9] = 1.0
    x[rng.random(num_rows) < 0.1, 10] = np.nan
    return x


def logits_of(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.nan_to_num(x[:, :5])


def compare_tables(reference: npt.NDArray[np.float32], now: npt.NDArray[np.float32], limits: Limits) -> Report:
    labels = logits_of(reference).argmax(axis=1)
    rows = Rows(now, softmax(logits_of(now)).astype(np.float32))
    return compare(make_reference(reference, logits_of(reference), labels), rows, limits)


def statistic(report: Report, name: str) -> Statistic:
    return next(one for one in report.statistics if one.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("num_rows", [100, 300, 660])
def test_fresh_rows_of_the_same_digits_hardly_ever_alarm(digits: Digits, num_rows: int) -> None:
    alarms, repetitions = 0, 150
    for seed in range(repetitions):
        reference, images = digits.split(seed, num_rows)
        alarms += compare(reference, digits.rows(images)).alarm
    assert alarms / repetitions <= 0.04


@pytest.mark.slow
def test_fresh_rows_of_the_same_table_hardly_ever_alarm() -> None:
    alarms, repetitions = 0, 150
    for seed in range(repetitions):
        rng = np.random.default_rng(seed)
        alarms += compare_tables(table(rng, 165), table(rng, 1000), Limits()).alarm
    assert alarms / repetitions <= 0.04


@pytest.mark.parametrize("worn", [contrast, blur, noise, shift])
def test_worn_digits_alarm(digits: Digits, worn: Callable[[Images], Images]) -> None:
    for seed in range(5):
        reference, images = digits.split(seed, 200)
        report = compare(reference, digits.rows(worn(images)))
        assert report.alarm
        assert report.alarmed("input")


def test_answers_that_become_unsure_alarm(digits: Digits) -> None:
    reference, images = digits.split(0, 300)
    report = compare(reference, digits.rows(blur(contrast(images))))
    assert "confidence" in report.alarmed("output")
    assert statistic(report, "confidence").dominance < 0.4


def test_other_class_shares_alarm_and_their_truth_is_estimated(digits: Digits) -> None:
    reference = digits.reference(np.arange(165))
    chosen = np.arange(165, len(digits.images))
    chosen = chosen[np.isin(digits.labels[chosen], [1, 3, 8])]
    report = compare(reference, digits.rows(digits.images[chosen]))
    assert report.alarmed("prior") == ["predicted_class"]
    assert report.true_shares is not None
    truth = np.bincount(digits.labels[chosen], minlength=10) / len(chosen)
    assert np.abs(np.array(report.true_shares) - truth).max() < 0.1


def test_the_rows_of_the_reference_do_not_alarm_however_sure_the_model_is() -> None:
    rng = np.random.default_rng(0)
    x = table(rng, 1000)
    labels = rng.integers(0, 5, 1000)
    logits = logits_of(x)
    logits[np.arange(1000), labels] += rng.uniform(12, 30, 1000).astype(np.float32)
    fit = fit_temperature(logits, labels)
    served = Deployed(torch.nn.Identity(), torch.nn.Identity(), fit.temperature)
    probabilities = served(torch.from_numpy(logits))[0].numpy()
    report = compare(make_reference(x, logits, labels, fit), Rows(x, probabilities))
    assert max(one.effect for one in report.statistics) == 0
    assert not report.alarm


def test_a_few_rows_never_alarm(digits: Digits) -> None:
    reference, images = digits.split(0, 99)
    report = compare(reference, digits.rows(contrast(images)))
    assert report.too_few
    assert not report.alarm
    assert report.statistics[0].effect > 1
    reference, images = digits.split(0, 100)
    assert compare(reference, digits.rows(contrast(images))).alarm


@pytest.mark.slow
def test_a_million_rows_do_not_make_a_trifle_an_alarm() -> None:
    rng = np.random.default_rng(0)
    reference, now = table(rng, 100_000), table(rng, 200_000)
    now[:, 3] += 0.05
    report = compare_tables(reference, now, Limits())
    assert statistic(report, "value_03").q < 1e-6
    assert not report.alarm


def test_missing_values_are_a_bin_of_their_own() -> None:
    rng = np.random.default_rng(0)
    reference, now = table(rng, 300), table(rng, 300)
    now[rng.random(300) < 0.3, 2] = np.nan
    report = compare_tables(reference, now, Limits())
    assert statistic(report, "value_02").alarm
    assert statistic(report, "value_02").now[-1] == np.isnan(now[:, 2]).sum()
    assert not statistic(report, "value_10").alarm
    now[:, 10] = np.nan
    assert statistic(compare_tables(reference, now, Limits()), "value_10").alarm


def test_a_constant_drifts_only_when_another_value_appears() -> None:
    rng = np.random.default_rng(0)
    reference, now = table(rng, 300), table(rng, 300)
    same = statistic(compare_tables(reference, now, Limits()), "value_09")
    assert (same.effect, same.p, same.alarm) == (0, 1, False)
    now[:60, 9] = 1.5
    other = statistic(compare_tables(reference, now, Limits()), "value_09")
    assert other.alarm
    assert other.dominance > 0.5


def test_a_flag_that_was_mostly_set_drifts_when_it_mostly_is_not() -> None:
    rng = np.random.default_rng(0)
    reference, now = table(rng, 300), table(rng, 300)
    reference[:, 7], now[:, 7] = rng.random(300) < 0.95, rng.random(300) < 0.1
    assert statistic(compare_tables(reference, now, Limits()), "value_07").alarm


def test_probabilities_that_are_no_numbers_are_counted(digits: Digits) -> None:
    reference, images = digits.split(0, 200)
    rows = digits.rows(images)
    rows.probabilities[:80] = np.nan
    report = compare(reference, rows)
    assert report.alarmed("prior") == ["predicted_class"]
    assert set(report.alarmed("output")) == {"confidence", "margin", "entropy"}
    assert report.accuracy is not None
    assert report.accuracy.num_rows == 120


def test_rows_are_counted_alike_whatever_their_number(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, images = digits.split(0, 200)
    whole = compare(reference, digits.rows(images))
    monkeypatch.setattr("hpctool.monitor.drift.CHUNK_ROWS", 7)
    assert compare(reference, digits.rows(images)) == whole
    assert all(sum(one.now) == 200 for one in whole.statistics)


def test_a_statistic_that_an_older_reference_does_not_know_is_left_out(digits: Digits) -> None:
    reference, images = digits.split(0, 200)
    histogram: dict[str, Any] = reference["inputs"].pop("sharpness")
    reference["inputs"]["from_a_later_version"] = histogram
    names = {one.name for one in compare(reference, digits.rows(images)).statistics}
    assert not names & {"sharpness", "from_a_later_version"}


def test_the_limits_are_those_of_the_configuration() -> None:
    said = OmegaConf.load(CONF).monitor
    assert Limits() == Limits(said.alpha, said.min_effect, said.min_rows)
