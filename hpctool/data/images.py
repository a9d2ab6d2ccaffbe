"""Images: encoded images as arrays, decoded by Pillow in threads; it lets go of Python's lock while it decodes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hpctool.errors import CorruptError
from hpctool.world import Array

_MODES = {1: "L", 3: "RGB"}
_GREY = {"1", "L", "LA", "I", "I;16", "F"}
#: What Pillow raises on files that are cut off, hostile or no images.
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageForm:
    """What every image of a batch is made: uint8 (height, width, channels); other sizes are scaled to it."""

    height: int
    width: int
    channels: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1 or self.channels not in _MODES:
            raise ValueError(f"images of {self.height} × {self.width} with {self.channels} channels")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @classmethod
    def of(cls, data: Array) -> ImageForm:
        """The form that an encoded image, uint8 (bytes,), has itself; only its header is read. Raises ValueError."""
        try:
            with Image.open(io.BytesIO(data.data)) as image:
                turned = ImageOps.exif_transpose(image)
                return cls(turned.height, turned.width, 1 if image.mode in _GREY else 3)
        except _UNREADABLE as error:
            raise ValueError(f"it is no image that Pillow reads ({error})") from error


def decode(
    encoded: Sequence[Array], form: ImageForm, out: Array, spread: Callable[..., Iterable[None]], of: Path
) -> None:
    """Decode images, uint8 (bytes,) each, into out uint8 (n, *form.shape); `spread` is the map of some threads.

    Raises CorruptError, naming the dataset's folder `of` and the image's place, where one cannot be decoded.
    """

    def one(place: int) -> None:
        try:
            out[place] = decode_one(encoded[place], form)
        except ValueError as error:
            raise CorruptError(of, f"image {place} of a batch: {error}") from error

    for _ in spread(one, range(len(encoded))):
        pass


def decode_one(data: Array, form: ImageForm) -> Array:
    """One encoded image, uint8 (bytes,), as uint8 (height, width, channels). Raises ValueError."""
    try:
        with Image.open(io.BytesIO(data.data)) as image:
            found = ImageOps.exif_transpose(image)
            if found.mode != _MODES[form.channels]:
                found = found.convert(_MODES[form.channels])
            if found.size != (form.width, form.height):
                # As prepare scales them.
                found = found.resize((form.width, form.height), Image.Resampling.BILINEAR)
            return np.asarray(found).reshape(form.shape)
    except _UNREADABLE as error:
        raise ValueError(f"it is no image that Pillow reads ({error})") from error
