"""The worn scanner is always worn in the same way."""

import numpy as np
import pytest

from hpctool.errors import InputError
from hpctool.flywheel.worn import wear

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype(np.uint8)
KEYS = [f"row-{n}" for n in range(6)]


def test_a_key_is_worn_the_same_way_in_any_company() -> None:
    together = wear(IMAGES, KEYS)
    alone = np.concatenate([wear(IMAGES[n : n + 1], KEYS[n : n + 1]) for n in range(6)])
    assert np.array_equal(together, alone)
    assert together.dtype == np.uint8
    assert together.shape == IMAGES.shape


def test_another_key_or_seed_has_other_noise() -> None:
    assert not np.array_equal(wear(IMAGES[:1], ["a"]), wear(IMAGES[:1], ["b"]))
    assert not np.array_equal(wear(IMAGES[:1], ["a"], seed=0), wear(IMAGES[:1], ["a"], seed=1))


def test_contrast_falls_and_edges_soften() -> None:
    worn = wear(IMAGES, KEYS).astype(float)
    clean = IMAGES.astype(float)
    assert worn.std() < 0.8 * clean.std()
    assert np.abs(np.diff(worn, axis=2)).mean() < 0.8 * np.abs(np.diff(clean, axis=2)).mean()


def test_nothing_to_wear_gives_nothing_and_other_arrays_are_refused() -> None:
    assert wear(IMAGES[:0], []).shape == (0, 8, 8, 1)
    with pytest.raises(InputError, match="uint8"):
        wear(IMAGES.astype(np.float32), KEYS)
