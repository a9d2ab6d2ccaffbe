"""Encoded images and what becomes of them: pixels of one size, uint8 (H, W, C), or the same bytes as they came.

C is 1 for grey and 3 for colour. Images of different sizes need a rule: resize (stretched), crop (scaled until it
covers, the middle is kept), pad (scaled until it fits, on black), or encoded (no pixels are made at all).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.schema import Source
from hpctool.errors import ConfigError, SourceError
from hpctool.world import Array

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FITS = ("resize", "crop", "pad", "encoded")
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "PA", "RGBX"}
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Target:
    """What every image is brought to."""

    height: int
    width: int
    channels: int
    #: resize, crop, pad; "" insists that all are alike
    fit: str
    #: whether the number of channels was asked for, or is that of the first image
    convert: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def keeps_encoded(source: Source) -> bool:
    """Whether images are stored as they came. Raises ConfigError on a rule or a number of channels that is none."""
    if source.fit is not None and source.fit not in FITS:
        raise ConfigError("source.fit", f"'{source.fit}' is none of {', '.join(FITS)}.")
    if source.fit in ("crop", "pad") and source.size is None:
        raise ConfigError("source.fit", f"'{source.fit}' needs source.size=[height,width].")
    if source.channels not in (None, *_MODES):
        raise SourceError("source.channels", f"{source.channels} is neither 1 (grey) nor 3 (colour).")
    if source.size is not None and (len(source.size) != 2 or min(source.size) < 1):
        raise ConfigError("source.size", f"{source.size} is no [height,width].")
    return source.fit == "encoded"


def make_target(source: Source, data: bytes | Path, where: str) -> Target:
    """What all images are brought to, from what was asked for and from the first image. Raises SourceError."""
    image = _opened(data, where)
    channels = source.channels or _channels(where, image)
    height, width = source.size or (image.height, image.width)
    fit = source.fit or ("resize" if source.size is not None else "")
    return Target(height, width, channels, fit, source.channels is not None)


def image_column(name: str, target: Target | None) -> Column:
    """The column of pixels, or of encoded images where there is no target."""
    if target is None:
        return Column(name, np.dtype(np.uint8), (), ragged=True, encoding="image")
    return Column(name, np.dtype(np.uint8), (target.height, target.width, target.channels))


def decode(data: bytes | Path, target: Target, where: str) -> Array:
    """One image as uint8 (H, W, C). Raises SourceError where it cannot be read or does not fit."""
    image = _opened(data, where)
    channels = _channels(where, image)
    if channels != target.channels and not target.convert:
        raise SourceError(
            where,
            f"it has {channels} channel(s) where the first image has {target.channels}. "
            "Say what all shall have: source.channels=1 (grey) or source.channels=3 (colour).",
        )
    wanted = (target.height, target.width)
    if (image.height, image.width) != wanted and not target.fit:
        raise SourceError(
            where,
            f"it is {image.height}×{image.width} where the first image is {target.height}×{target.width}. To resize "
            f"all: source.size=[{target.height},{target.width}]. With source.fit: crop, pad, or encoded (as they are).",
        )
    image = image.convert(_MODES[target.channels])
    if (image.height, image.width) != wanted:
        image = _fitted(image, target)
    return np.asarray(image).reshape(*wanted, target.channels)


def check(data: bytes, where: str) -> None:
    """Whether an image that is kept encoded can be decoded to its end. Raises SourceError."""
    _opened(data, where, draft=True)


def decode_all(encoded: Ragged, target: Target | None, names: list[str]) -> Values:
    """Images as a column: pixels (n, H, W, C), or the same bytes, checked. Raises SourceError by the images' names."""
    if target is None:
        for row, name in enumerate(names):
            check(encoded[row].tobytes(), name)
        return encoded
    pixels = np.empty((len(encoded), target.height, target.width, target.channels), np.uint8)
    for row, name in enumerate(names):
        pixels[row] = decode(encoded[row].tobytes(), target, name)
    return pixels


def _fitted(image: Image, target: Target) -> Image:
    from PIL import ImageOps
    from PIL.Image import Resampling

    size = (target.width, target.height)
    if target.fit == "crop":
        return ImageOps.fit(image, size, Resampling.BILINEAR)
    if target.fit == "pad":
        return ImageOps.pad(image, size, Resampling.BILINEAR, color=0)
    return image.resize(size, Resampling.BILINEAR)


def _opened(data: bytes | Path, where: str, *, draft: bool = False) -> Image:
    from PIL import Image, ImageOps

    file: BinaryIO | Path = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        with Image.open(file) as image:
            if draft:
                # A JPEG at an eighth of its size is read to its end all the same.
                image.draft(None, (1, 1))
                image.load()
            return image if draft else ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SourceError(where, f"it cannot be read as an image ({error}).") from error


def _channels(where: str, image: Image) -> int:
    if image.mode in _GREY:
        return 1
    if image.mode in _COLOUR:
        return 3
    raise SourceError(where, f"its mode is {image.mode}, more than 8 bits; store such images as arrays (source=npz).")


class ImageColumns:
    """The columns of a source that are encoded images: found out on rank 0, brought to one form on all."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.encoded = keeps_encoded(source)

    def survey(self, names: Iterable[str], first: Callable[[str], bytes], where: str) -> dict[str, Any]:
        """What is shared with all ranks: column → target, None where images are kept encoded. SourceError."""
        return {
            name: None if self.encoded else make_target(self.source, first(name), where).to_json() for name in names
        }

    def schema(self, shared: Mapping[str, Any], columns: dict[str, Column]) -> dict[str, Column]:
        """The columns, with pixels or encoded images where there are images."""
        return columns | {name: image_column(name, _target(found)) for name, found in shared.items()}

    def features(
        self, shared: Mapping[str, Any], columns: Mapping[str, Values], name_of: Callable[[int], str]
    ) -> dict[str, Values]:
        """The columns, with pixels where there were images. SourceError by the row's key."""
        found = dict(columns)
        for name, target in shared.items():
            encoded = columns[name]
            assert isinstance(encoded, Ragged), "encoded images are ragged bytes"
            found[name] = decode_all(encoded, _target(target), [name_of(row) for row in range(len(encoded))])
        return found


def _target(value: dict[str, Any] | None) -> Target | None:
    return Target(**value) if value else None
