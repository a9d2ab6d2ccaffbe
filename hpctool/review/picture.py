"""What a person sees of an input: an image as PNG, a text, or its numbers.

N items, H height, W width, C channels
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from hpctool.data.images import ImageForm, decode_one
from hpctool.data.ragged import Ragged
from hpctool.review.queue import Queue
from hpctool.world import Array

_MAX_VALUES = 64
_MAX_LETTERS = 4_000
# More than a screen shows; a photo of 12 million pixels would be 20 MB as PNG, through somebody's tunnel.
_MAX_PIXELS = 1_600


def is_picture(encoding: str | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Whether rows of this kind can be shown as images: encoded ones, and uint8 (H, W, C) with 1, 3 or 4 channels."""
    return encoding == "image" or (dtype == np.uint8 and len(shape) == 3 and shape[2] in (1, 3, 4))


def is_image(queue: Queue) -> bool:
    """Whether the queue's inputs can be shown as images."""
    inputs = queue.inputs
    shape = () if isinstance(inputs, Ragged) else inputs.shape[1:]
    return is_picture(queue.record.get("encoding"), inputs.dtype, shape)


def png(queue: Queue, place: int) -> bytes:
    """An item's image as PNG, in its own size unless that is huge; whoever shows it enlarges it. Raises SourceError."""
    from PIL import Image

    row = queue.inputs[place]
    image_HWC = _decoded(row) if queue.record.get("encoding") == "image" else row
    picture = Image.fromarray(image_HWC[:, :, 0] if image_HWC.shape[2] == 1 else image_HWC)
    picture.thumbnail((_MAX_PIXELS, _MAX_PIXELS))
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def _decoded(data: Array) -> Array:
    form = ImageForm.of(data, None, "an item")
    out = np.empty(form.shape, np.uint8)
    decode_one(data, form, out)
    return out


def text(queue: Queue, place: int) -> str | None:
    """An item's text; None where items are none."""
    inputs = queue.inputs
    if not isinstance(inputs, Ragged) or inputs.values.dtype != np.uint8 or inputs.values.ndim != 1:
        return None
    found = inputs[place].tobytes().decode("utf-8", "replace")
    return found if len(found) <= _MAX_LETTERS else f"{found[:_MAX_LETTERS]} …"


def values(row: Array, names: list[str] | None) -> list[tuple[str, str]]:
    """The first 64 numbers of an input that is no image, each with its name or place."""
    flat = row.reshape(-1)[:_MAX_VALUES]
    called = names or [str(place) for place in range(len(flat))]
    return [(name, _word(value)) for name, value in zip(called, flat.tolist(), strict=False)]


def _word(value: float | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else f"{value:.6g}"
