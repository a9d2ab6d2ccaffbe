"""Changes to training samples: pure functions of the sample and of a generator made for (seed, epoch, uid).

One of your own is any callable of this form, named in the config: `augment={_target_: myproject.Flip}`.

Shapes: H rows, W columns, C channels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Augment(Protocol):
    """One sample and its random generator → the sample to learn from, of the same shape and dtype."""

    def __call__(self, sample: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]: ...


class RandomShift:
    """Shift an image (H, W, C) by up to `pixels` in each direction; what comes in is 0."""

    def __init__(self, pixels: int = 1) -> None:
        self.pixels = pixels

    def __call__(self, sample: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
        height, width = sample.shape[:2]
        down, right = (int(shift) for shift in rng.integers(0, 2 * self.pixels + 1, 2))
        border = [(self.pixels, self.pixels)] * 2 + [(0, 0)] * (sample.ndim - 2)
        return np.pad(sample, border)[down : down + height, right : right + width]
