"""The handwritten digits that scikit-learn ships: 1,797 grey images of 8 × 8, ten classes, no network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

import numpy as np

from hpctool.data.schema import Source
from hpctool.data.sources.base import Block, Piece, RowSource

_BRIGHTEST = 16  # the file's values are 0..16


class Digits(RowSource):
    """Column `image`, uint8 (8, 8, 1), 0..255."""

    def __init__(self, source: Source) -> None:
        super().__init__()

    def pin(self) -> str:
        """The digits come with scikit-learn, so its version pins them."""
        return f"scikit-learn {metadata.version('scikit-learn')}"

    def pieces(self) -> list[Piece]:
        return [{"name": "digits"}]

    def blocks(self, piece: Piece) -> Iterator[Block]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * 255 / _BRIGHTEST).astype(np.uint8)[..., np.newaxis]
        keys = [f"digits#{row}" for row in range(len(images))]
        labels = [str(digits.target_names[label]) for label in digits.target]
        yield Block(keys, labels, {"image": images})
