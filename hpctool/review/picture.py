"""What a person sees of an input: an image as PNG in its own size, or its numbers.

N items, H height, W width, C channels
"""

from __future__ import annotations

import io

import numpy as np

from hpctool.world import Array

_MAX_VALUES = 64


def is_image(inputs: Array) -> bool:
    """Whether the inputs (N, …) are images that can be shown: uint8 (N, H, W, C) with 1, 3 or 4 channels."""
    return inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] in (1, 3, 4)


def png(image_HWC: Array) -> bytes:
    """One image as PNG; whoever shows it enlarges it."""
    from PIL import Image

    picture = Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def values(row: Array, names: list[str] | None) -> list[tuple[str, str]]:
    """The first 64 numbers of an input that is no image, each with its name or place."""
    flat = row.reshape(-1)[:_MAX_VALUES]
    called = names or [str(place) for place in range(len(flat))]
    return [(name, f"{value:.6g}") for name, value in zip(called, flat.tolist(), strict=False)]
