"""A worn scanner: the corruption with which the flywheel's rehearsal lets user data drift. Fixed and seeded.

N images, H height, W width, C channels
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hpctool.data.version import open_version
from hpctool.errors import InputError
from hpctool.files import sha256_bytes

Images = npt.NDArray[np.uint8]

CONTRAST = 0.85  # of the range that is left
BLUR_PIXELS = 0.4  # standard deviation, in pixels of an 8 × 8 image
NOISE = 0.05  # standard deviation, of the whole range
SHIFT_PIXELS = 0.5  # to the right and down, as a scanner's carriage slips


def wear(images_NHWC: Images, keys: list[str], seed: int = 0) -> Images:
    """What a worn scanner makes of images uint8 (N, H, W, C): low contrast, blurred, noisy, shifted; same shape.

    The noise of an image is drawn from (seed, its key), so the same key is always worn the same way.
    """
    if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4:
        raise InputError(f"Only uint8 images (N, H, W, C) can be worn, not {images_NHWC.dtype} {images_NHWC.shape}.")
    x_NHWC = images_NHWC.astype(np.float64) / 255.0
    x_NHWC = ndimage.shift(x_NHWC, (0, SHIFT_PIXELS, SHIFT_PIXELS, 0), order=1, mode="constant")
    x_NHWC = ndimage.gaussian_filter(x_NHWC, (0, BLUR_PIXELS, BLUR_PIXELS, 0))
    x_NHWC = x_NHWC * CONTRAST + (1 - CONTRAST) / 2
    noise = [_generator(seed, key).normal(0.0, NOISE, x_NHWC.shape[1:]) for key in keys]
    x_NHWC = x_NHWC + np.stack(noise) if len(noise) else x_NHWC
    worn: Images = np.rint(np.clip(x_NHWC, 0.0, 1.0) * 255.0).astype(np.uint8)
    return worn


class WornRows:
    """A reader for `hpctool prepare`: the rows of a split as the worn scanner would have delivered them.

    `source._target_=hpctool.flywheel.worn.WornRows`, with the folder of datasets, `name@revision`, split and seed.
    """

    def __init__(self, datasets: str, name: str, split: str, seed: int = 0) -> None:
        version = open_version(Path(datasets), name)
        rows = version.split_rows(split)
        self.uids = version.uids(rows)
        self.labels = version.read("label", rows)
        self.classes = version.classes
        feature = next(column for column in version.columns.values() if column.role == "feature")
        self.column = feature.name
        self.images = wear(version.read(feature.name, rows), self.uids, seed)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for uid, label, image in zip(self.uids, self.labels, self.images, strict=True):
            yield {"key": uid, "label": self.classes[label] if label >= 0 else None, self.column: image}


def _generator(seed: int, key: str) -> np.random.Generator:
    return np.random.default_rng(int(sha256_bytes(f"{seed} {key}".encode())[:16], 16))
