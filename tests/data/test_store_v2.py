"""A store of the second format, with ragged, encoded and compressed columns, is read for ever; never edited."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from hpctool.data.objects import read_column
from hpctool.data.ragged import Ragged, concatenate
from hpctool.data.verify import verify
from hpctool.data.version import open_version

STORE_V2 = Path(__file__).parents[1] / "assets" / "store_v2"


def test_its_values_are_what_was_written() -> None:
    version = open_version(STORE_V2, "letters@v1")
    assert version.commit == "47987365baf64dbab55dca5395c40c2f34a2248972d7f4933d7112fc00fa5cb1"
    groups = version.contents.row_groups
    assert [group.num_rows for group in groups] == [7, 5]
    read = {
        name: concatenate([read_column(version.store.layout, group.holder(name), name) for group in groups])
        for name in version.columns
    }
    image, tokens = read["image"], read["tokens"]
    assert isinstance(image, Ragged)
    assert isinstance(tokens, Ragged)
    assert version.columns["image"].encoding == "image"
    assert version.columns["wave"].finite
    for row in range(12):
        pixels = np.asarray(Image.open(io.BytesIO(image[row].tobytes())))
        assert np.array_equal(pixels, np.full((2 + row, 3, 3), 20 * row))
        assert tokens[row].tolist() == list(range(row))
    row_numbers = np.arange(12)
    assert np.array_equal(np.asarray(read["wave"]), np.broadcast_to(row_numbers[:, None, None], (12, 100, 300)))
    assert np.array_equal(np.asarray(read["mask"]), np.arange(5000) // 500 + row_numbers[:, None])
    assert np.array_equal(np.asarray(read["label"]), row_numbers % 3 - 1)
    assert {split: version.split_rows(split).tolist() for split in version.splits} == {
        "train": [0, 2, 4, 5, 6, 9, 11],
        "test": [1, 3, 7, 8, 10],
    }


def test_it_is_whole() -> None:
    report = verify(open_version(STORE_V2, "letters").store, deep=True)
    assert (report.num_commits, report.num_objects, report.damaged) == (1, 7, [])
