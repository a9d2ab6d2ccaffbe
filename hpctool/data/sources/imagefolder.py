"""A folder of images, one folder per class. Decoded to one size: uint8 (H, W, C), C 1 for grey and 3 for colour."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpctool import files
from hpctool.data.manifest import Column
from hpctool.data.reader import Rows
from hpctool.data.schema import Source
from hpctool.data.sources.table import Table, encode_labels
from hpctool.errors import SourceError
from hpctool.world import Array

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY = {"1", "L", "LA"}
_COLOUR = {"P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "PA", "RGBX"}
#: how long the login node looks for images that cannot be read; the job finds the others
_LOOK_S = 2.0
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Target:
    """What every image is brought to."""

    height: int
    width: int
    channels: int
    #: whether images of another size are resized or refused
    resize: bool
    #: whether the number of channels was asked for, or is that of the first image
    convert: bool


def pin(source: Source) -> str:
    """A digest of the images' names and sizes, after a look at as many of them as two seconds allow."""
    root, paths, _ = _found(source)
    target, end = _target(source, root / paths[0]), time.monotonic() + _LOOK_S
    for path in itertools.takewhile(lambda _: time.monotonic() < end, paths):
        decode(root / path, target)
    listing = [[path, (root / path).stat().st_size] for path in paths]
    return f"names-and-sizes:{files.sha256_bytes(files.canonical_json(listing))}"


def load(source: Source) -> Table:
    """Column `image`; decoded when it is read, so that ranks share the work."""
    root, paths, others = _found(source)
    parents = [path.split("/")[0] if "/" in path else "" for path in paths]
    labels, classes = encode_labels(
        parents, source.classes, lambda row, problem: SourceError(root / paths[row], problem)
    )
    target = _target(source, root / paths[0])

    def read(rows: Rows) -> dict[str, Array]:
        images = np.empty((len(rows), target.height, target.width, target.channels), np.uint8)
        for place, row in enumerate(rows.tolist()):
            images[place] = decode(root / paths[row], target)
        return {"image": images}

    shape = (target.height, target.width, target.channels)
    return Table(
        keys=paths,
        columns={"image": Column("image", np.dtype(np.uint8), shape)},
        labels=labels,
        classes=classes,
        read=read,
        notes=_notes(root, parents, others),
    )


def decode(path: Path, target: Target) -> Array:
    """One image as uint8 (H, W, C). Raises SourceError where it cannot be read or does not fit."""
    from PIL.Image import Resampling

    image = _opened(path)
    channels = _channels(path, image)
    if channels != target.channels and not target.convert:
        raise SourceError(
            path,
            f"it has {channels} channel(s) where the first image has {target.channels}. "
            "Say what all shall have: source.channels=1 (grey) or source.channels=3 (colour).",
        )
    if (image.height, image.width) != (target.height, target.width):
        if not target.resize:
            raise SourceError(
                path,
                f"it is {image.height}×{image.width} where the first image is {target.height}×{target.width}. "
                f"To resize all: source.size=[{target.height},{target.width}].",
            )
        image = image.convert(_MODES[target.channels]).resize((target.width, target.height), Resampling.BILINEAR)
    array = np.asarray(image.convert(_MODES[target.channels]))
    return array.reshape(target.height, target.width, target.channels)


def _found(source: Source) -> tuple[Path, list[str], int]:
    """The folder, its images' paths below it in order, and how many other files there are."""
    root = Path(source.path or "")
    if not source.path or not root.is_dir():
        raise SourceError(source.path or "source.path", "there is no such folder to read images from.")
    paths, others = [], 0
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in _SUFFIXES and not name.startswith("."):
                paths.append(path.relative_to(root).as_posix())
            else:
                others += 1
    if not paths:
        raise SourceError(root, f"it holds no image ({', '.join(sorted(_SUFFIXES))}).")
    return root, sorted(paths), others


def _target(source: Source, first: Path) -> Target:
    image = _opened(first)
    channels = source.channels or _channels(first, image)
    if channels not in _MODES:
        raise SourceError("source.channels", f"{channels} is neither 1 (grey) nor 3 (colour).")
    height, width = source.size or (image.height, image.width)
    return Target(height, width, channels, source.size is not None, source.channels is not None)


def _opened(path: Path) -> Image:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SourceError(path, f"it cannot be read as an image ({error}).") from error


def _channels(path: Path, image: Image) -> int:
    if image.mode in _GREY:
        return 1
    if image.mode in _COLOUR:
        return 3
    raise SourceError(path, f"its mode is {image.mode}, more than 8 bits; store such images as arrays (source=npz).")


def _notes(root: Path, parents: list[str], others: int) -> list[str]:
    notes = []
    if unlabelled := parents.count(""):
        notes.append(f"{unlabelled} images lie beside the class folders of {root} and have no label.")
    if others:
        notes.append(f"{others} files in {root} are no images and were left out.")
    return notes
