"""Effect and significance of two finite samples in the same bins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hpctool.monitor import samples


def test_bins_are_joined_until_the_rarer_sample_expects_five_rows_in_each() -> None:
    merged = samples.merged(np.array([1, 2, 3, 40, 54]), np.array([10, 20, 170, 300, 500]), ordered=True)
    assert merged.sum(axis=1).tolist() == [100, 1000]
    assert stats.contingency.expected_freq(merged).min() >= samples.MIN_EXPECTED
    assert merged.tolist() == [[6, 40, 54], [200, 300, 500]]


def test_classes_are_joined_from_the_rarest() -> None:
    merged = samples.merged(np.array([1, 50, 2, 49]), np.array([1, 50, 2, 49]), ordered=False)
    assert merged.tolist() == [[52, 50], [52, 50]]


def test_two_bins_are_left_where_all_others_are_rare() -> None:
    assert samples.merged(np.array([60, 0, 0]), np.array([57, 2, 1]), ordered=True).tolist() == [[60, 0], [57, 3]]
    assert samples.merged(np.array([60, 0]), np.array([90, 0]), ordered=True).tolist() == [[60], [90]]


def test_the_effect_is_the_stability_index_less_that_of_chance() -> None:
    table = np.array([[3000, 7000], [5000, 5000]])
    index = (0.5 - 0.3) * math.log(0.5 / 0.3) + (0.5 - 0.7) * math.log(0.5 / 0.7)
    assert samples.effect(table) == pytest.approx(index - 2 / 10_000, abs=1e-4)
    assert samples.effect(np.array([[30, 70], [31, 69]])) == 0
    assert samples.effect(np.array([[30], [31]])) == 0


def test_without_drift_the_effect_does_not_depend_on_the_number_of_rows() -> None:
    rng = np.random.default_rng(0)
    for num_rows in (100, 1000, 10_000):
        tables = [rng.multinomial(n, [0.1] * 10) for n in (165, num_rows) for _ in range(300)]
        effects = [samples.effect(np.stack(pair)) for pair in zip(tables[:300], tables[300:], strict=True)]
        assert np.median(effects) < 0.01
        assert np.mean(effects) < 0.05


def test_p_values_are_those_of_scipy_and_exact_where_counts_are_small() -> None:
    large, small = np.array([[30, 70, 50], [50, 50, 50]]), np.array([[60, 0], [57, 3]])
    assert samples.p_value(large) == pytest.approx(stats.chi2_contingency(large, correction=False).pvalue)
    assert samples.p_value(small) == pytest.approx(stats.fisher_exact(small).pvalue)
    assert samples.p_value(np.array([[30], [20]])) == 1
    assert samples.p_value(np.array([[30, 3], [0, 0]])) == 1


@pytest.mark.slow
def test_p_values_of_samples_without_drift_are_evenly_spread() -> None:
    rng = np.random.default_rng(0)
    p = [samples.p_value(np.stack([rng.multinomial(n, [0.1] * 10) for n in (165, 400)])) for _ in range(1000)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_q_values_are_benjamini_and_hochbergs() -> None:
    assert samples.q_values([0.01, 0.02, 0.9, 0.03]) == pytest.approx([0.04, 0.04, 0.9, 0.04])
    assert samples.q_values([]) == []


def test_dominance_tells_higher_from_lower() -> None:
    low, high = np.array([10, 0, 0]), np.array([0, 0, 10])
    assert samples.dominance(low, high) == 1
    assert samples.dominance(high, low) == 0
    assert samples.dominance(low, low) == 0.5
    assert samples.dominance(low, np.zeros(3, np.int64)) == 0.5
