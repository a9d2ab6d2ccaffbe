"""The handwritten digits that scikit-learn ships: 1,797 grey images of 8 × 8, ten classes, no network."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from hpctool.data.manifest import Column
from hpctool.data.schema import Source
from hpctool.data.sources.table import Table

_BRIGHTEST = 16  # the file's values are 0..16


def pin(source: Source) -> str:
    """The digits come with scikit-learn, so its version pins them."""
    return f"scikit-learn {metadata.version('scikit-learn')}"


def load(source: Source) -> Table:
    """Column `image`, uint8 (8, 8, 1), 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / _BRIGHTEST).astype(np.uint8)[..., np.newaxis]
    return Table(
        keys=[f"digits#{row}" for row in range(len(images))],
        columns={"image": Column("image", images.dtype, images.shape[1:])},
        labels=digits.target.astype(np.int64),
        classes=[str(name) for name in digits.target_names],
        read=lambda rows: {"image": images[rows]},
    )
