"""Encoded images become pixels when they are read: the same bits as Pillow's, whatever the way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from hpctool.data import images
from hpctool.data.images import ImageForm, decode, decode_one
from hpctool.errors import CorruptError, SourceError
from hpctool.world import Array

PIXELS = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)).resize((61, 43)))


def encoded(mode: str = "RGB", form: str = "jpeg", **options: Any) -> Array:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form, **options)
    return np.frombuffer(file.getvalue(), np.uint8)


def by_pillow(data: Array, mode: str = "RGB") -> Array:
    with Image.open(io.BytesIO(data.data)) as image:
        found = np.asarray(ImageOps.exif_transpose(image).convert(mode))
    return found if found.ndim == 3 else found[:, :, None]


def decoded(data: Array, form: ImageForm) -> Array:
    out = np.zeros(form.shape, np.uint8)
    decode_one(data, form, out)
    return out


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_decoded_to_the_bits_that_pillow_gives(subsampling: str, quality: int, progressive: bool) -> None:
    data = encoded(quality=quality, subsampling=subsampling, progressive=progressive)
    out = np.zeros((43, 61, 3), np.uint8)
    assert images._decode_jpeg(data, ImageForm(43, 61, 3), out)
    assert np.array_equal(out, by_pillow(data))


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded("L"), "L"),
        (encoded("L"), "RGB"),
        (encoded(), "L"),
        (encoded("CMYK"), "RGB"),
        (encoded(form="png"), "RGB"),
        (encoded("P", "png"), "RGB"),
        (encoded(form="webp", lossless=True), "RGB"),
    ],
)
def test_other_colours_and_formats_are_as_pillow_gives_them(data: Array, mode: str) -> None:
    form = ImageForm(43, 61, 3 if mode == "RGB" else 1)
    assert np.array_equal(decoded(data, form), by_pillow(data, mode))


def test_an_image_that_a_camera_turned_stands_upright() -> None:
    exif = Image.Exif()
    exif[images._ORIENTATION] = 6
    data = encoded(exif=exif)
    assert ImageForm.of(data, None, "here") == ImageForm(61, 43, 3)
    assert np.array_equal(decoded(data, ImageForm(61, 43, 3)), by_pillow(data))
    exif[images._ORIENTATION] = 1
    assert images._decode_jpeg(encoded(exif=exif), ImageForm(43, 61, 3), np.zeros((43, 61, 3), np.uint8))


def test_other_sizes_are_scaled() -> None:
    data = encoded()
    scaled = Image.fromarray(by_pillow(data)).resize((30, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(decoded(data, ImageForm(20, 30, 3)), np.asarray(scaled))
    assert ImageForm.of(data, [20, 30], "here") == ImageForm(20, 30, 3)


@pytest.mark.parametrize(
    "data", [encoded()[:-200], encoded()[:200], encoded()[:10], np.zeros(50, np.uint8), encoded(form="png")[:99]]
)
def test_what_is_cut_off_or_no_image_is_named(data: Array) -> None:
    with pytest.raises(CorruptError, match="image 1 of a batch: it cannot be read as an image"):
        decode([encoded(), data], ImageForm(43, 61, 3), np.zeros((2, 43, 61, 3), np.uint8), map, Path("digits"))
    with pytest.raises(SourceError, match="here: it cannot be read"):
        ImageForm.of(data[:20], None, "here")


def test_any_bytes_are_an_error_of_ours_or_an_image() -> None:
    rng, data = np.random.default_rng(0), encoded(quality=60)
    form, out = ImageForm(43, 61, 3), np.zeros((43, 61, 3), np.uint8)
    for _ in range(300):
        harmed = data.copy()
        harmed[rng.integers(0, len(data), rng.integers(1, 6))] = rng.integers(0, 256)
        try:
            decode_one(harmed[: rng.integers(2, len(data) + 1)], form, out)
        except SourceError:
            continue
