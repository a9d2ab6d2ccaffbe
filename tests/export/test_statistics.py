"""Statistics: every value is counted in a bin, and what drifts moves between bins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hpctool.export import statistics


def images(num: int = 200, side: int = 8, channels: int = 1) -> npt.NDArray[np.uint8]:
    x_NHWC: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(
        0, 256, (num, side, side, channels), dtype=np.uint8
    )
    return x_NHWC


def test_bins_hold_about_equally_many_and_lose_none() -> None:
    values = np.random.default_rng(0).normal(size=1003)
    found = statistics.histogram(values, 10)
    assert len(found["edges"]) == 9
    assert sum(found["counts"]) == 1003
    assert max(found["counts"]) - min(found["counts"]) <= 1


def test_a_value_on_an_edge_is_counted_below_it() -> None:
    assert statistics.count(np.array([1.0, 1.5, 2.0, 9.0]), [1.0, 2.0]) == ([1, 2, 1], 0)


def test_a_constant_has_a_bin_of_its_own() -> None:
    found = statistics.histogram(np.full(50, 0.25), 10)
    assert found["counts"] == [0, 50, 0]
    assert statistics.count(np.array([0.24, 0.25, 0.26]), found["edges"]) == ([1, 1, 1], 0)


def test_repeated_values_share_a_bin() -> None:
    found = statistics.histogram(np.array([0.0] * 80 + list(range(1, 21)), np.float64), 10)
    assert found["counts"][0] == 80
    assert sum(found["counts"]) == 100
    assert all(found["counts"])


def test_a_largest_value_that_most_rows_have_is_a_bin_of_its_own() -> None:
    found = statistics.histogram(np.array([0.0] * 5 + [1.0] * 95), 10)
    assert found["counts"] == [5, 95, 0]
    assert statistics.count(np.array([0.0, 0.5, 1.0, 50.0]), found["edges"]) == ([2, 1, 1], 0)


def test_missing_values_are_counted_apart_and_infinite_ones_in_the_outer_bins() -> None:
    found = statistics.histogram(np.array([1.0, 2.0, 3.0, np.nan, np.inf, -np.inf]), 3)
    assert found["num_missing"] == 1
    assert sum(found["counts"]) == 5
    assert statistics.histogram(np.full(3, np.nan), 3) == {"edges": [], "counts": [0], "num_missing": 3}


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (8, 8, 1), (33, 17, 3)])
def test_images_of_any_size_have_finite_statistics(shape: tuple[int, int, int]) -> None:
    x_NHWC = np.random.default_rng(0).integers(0, 256, (7, *shape), dtype=np.uint8)
    for name, values in statistics.input_statistics(x_NHWC).items():
        assert values.shape == (7,), name
        assert values.dtype == np.float64
        assert ((values >= 0) & (values <= 1)).all()


def test_blur_shift_and_low_contrast_each_move_a_statistic() -> None:
    x_NHWC = images()
    x_NHWC[:, :4] //= 4  # the upper half is dark
    before = {name: values.mean() for name, values in statistics.input_statistics(x_NHWC).items()}
    blurred = ((x_NHWC.astype(int) + np.roll(x_NHWC, 1, axis=2) + np.roll(x_NHWC, 1, axis=1)) // 3).astype(np.uint8)
    after = statistics.input_statistics(blurred)
    assert after["sharpness"].mean() < 0.8 * before["sharpness"]
    assert statistics.input_statistics(x_NHWC // 2)["contrast"].mean() < 0.6 * before["contrast"]
    shifted = statistics.input_statistics(np.roll(x_NHWC, 4, axis=1))
    assert shifted["block_00"].mean() > 2 * before["block_00"]


def test_feature_rows_are_described_value_by_value() -> None:
    x_NF = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    found = statistics.input_statistics(x_NF)
    assert found["value_01"].tolist() == x_NF[:, 1].astype(np.float64).tolist()
    wide = statistics.input_statistics(np.zeros((2, 1000), np.float32))
    assert set(wide) == {"mean", "std", "min", "max"}


def test_outputs_have_confidence_margin_and_entropy() -> None:
    found = statistics.output_statistics(np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]]))
    assert found["confidence"].tolist() == [0.7, 1.0]
    assert found["margin"] == pytest.approx([0.5, 1.0])
    assert found["entropy"] == pytest.approx([0.8018, 0.0], abs=1e-4)
    assert statistics.output_statistics(np.ones((2, 1)))["margin"].tolist() == [1.0, 1.0]
