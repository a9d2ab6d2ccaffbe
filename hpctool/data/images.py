"""Images that are decoded when they are read: by threads, into the batch's own memory.

JPEGs go through libjpeg-turbo (simplejpeg), which writes pixels where they are to be; Pillow, built on the same
library, gives the same bits in 1.5 to 2 times the time. It reads all other images, and JPEGs that must be turned or
change their colours.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import simplejpeg
from PIL import Image

from hpctool.data.schema import Source
from hpctool.data.sources import images as sources
from hpctool.errors import CorruptError, SourceError
from hpctool.world import Array

#: what simplejpeg calls the colours of a file → the channels that it gives without changing them
_PLAIN = {"Gray": (1, "GRAY"), "YCbCr": (3, "RGB")}
_JPEG = b"\xff\xd8"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class ImageForm:
    """What every image of a batch is made: uint8 (height, width, channels); other sizes are scaled to it."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @classmethod
    def of(cls, data: Array, size: Sequence[int] | None, where: str) -> ImageForm:
        """The form that an encoded image, uint8 (bytes,), has itself, or of another size. Raises InputError."""
        found = sources.make_target(Source(kind="encoded", size=list(size) if size else None), data.tobytes(), where)
        return cls(found.height, found.width, found.channels)


def size_of(data: Array) -> tuple[int, int]:
    """Height and width of an encoded image, uint8 (bytes,), from its head. Raises SourceError on what is no image."""
    form = ImageForm.of(data, None, "an encoded image")
    return form.height, form.width


def decode(
    encoded: Sequence[Array], form: ImageForm, out: Array, spread: Callable[..., Iterable[None]], of: Path
) -> None:
    """Decode images, uint8 (bytes,) each, into out uint8 (n, *form.shape); `spread` is the map of some threads.

    Raises CorruptError, naming the dataset's folder `of` and the image's place, where one cannot be decoded.
    """

    def one(place: int) -> None:
        try:
            decode_one(encoded[place], form, out[place])
        except SourceError as error:
            raise CorruptError(of, f"image {place} of a batch: {error.problem.rstrip('.')}") from error

    for _ in spread(one, range(len(encoded))):
        pass


def decode_one(data: Array, form: ImageForm, out: Array) -> None:
    """One encoded image, uint8 (bytes,), into out uint8 (height, width, channels). Raises SourceError."""
    if data[:2].tobytes() == _JPEG and _decode_jpeg(data, form, out):
        return
    target = sources.Target(form.height, form.width, form.channels, fit="resize", convert=True)
    out[...] = sources.decode(data.tobytes(), target, "an encoded image")


def _decode_jpeg(data: Array, form: ImageForm, out: Array) -> bool:
    """Whether it was one that needs neither scaling nor turning nor other colours, and has been decoded."""
    raw = data.data
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(raw)
        channels, space = _PLAIN.get(colours, (0, ""))
        if (height, width, channels) != form.shape or not out.flags.c_contiguous or _is_turned(data):
            return False
        simplejpeg.decode_jpeg(raw, space, buffer=out)
        return True
    except ValueError:  # cut off or hostile: Pillow says what is wrong
        return False


def _is_turned(data: Array) -> bool:
    """Whether a camera wrote that the image is to be shown turned: only then the head is parsed."""
    if b"Exif\x00\x00" not in data[: 1 << 16].tobytes():
        return False
    with Image.open(io.BytesIO(data.data)) as image:
        return bool(image.getexif().get(_ORIENTATION, 1) != 1)
