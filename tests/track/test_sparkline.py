"""A metric's course in one word."""

from pathlib import Path

import pytest

from hpctool.track.sparkline import course, sparkline
from tests.track.samples import Sample


@pytest.mark.parametrize(
    ("values", "blocks"),
    [
        ([], ""),
        ([3.0], "▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([1, float("nan"), 0], "█ ▁"),
        ([float("inf"), float("nan")], ""),
    ],
)
def test_blocks_go_from_the_lowest_to_the_highest(values: list[float], blocks: str) -> None:
    assert sparkline(values) == blocks


def test_a_long_course_is_cut_into_stretches() -> None:
    assert sparkline([0.0] * 500 + [1.0] * 500, 4) == "▁▁██"


def test_the_most_telling_metric_is_shown_with_its_last_value(tmp_path: Path) -> None:
    sample = Sample(tmp_path).begin()
    assert course(sample.rundir, sample.rundir.story()) == ""
    sample.log([1], 0.5).log([2], 0.75)
    assert course(sample.rundir, sample.rundir.story()) == "val/accuracy ▁█ 0.75"
