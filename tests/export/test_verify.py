"""Verify: a bundle answers here as it did where it was made, and an old one does so for ever."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpctool import files
from hpctool.errors import CorruptError, NewerFormat, ParityError
from hpctool.export.bundle import manifest_digest
from hpctool.export.verify import load_verified

ASSET = Path(__file__).parents[1] / "assets" / "bundle_v1" / "digits" / "0001"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A real bundle that may be spoilt."""
    path = tmp_path / "digits" / "0001"
    shutil.copytree(ASSET, path)
    for file in path.iterdir():
        file.chmod(0o644)
    return path


def reseal(path: Path) -> None:
    """Make the manifest fit the files again, as somebody would who knows how."""
    manifest = files.read_json(path / "MANIFEST.json")
    for name, entry in manifest["files"].items():
        entry["size_bytes"] = (path / name).stat().st_size
        entry["sha256"] = files.sha256_file(path / name)
    manifest["digest"] = manifest_digest(manifest)
    files.write_json(path / "MANIFEST.json", manifest)


@pytest.mark.parametrize("num_rows", [0, 1, 2, 5, 64, 201])
def test_a_verified_bundle_takes_uint8_images_in_any_number(num_rows: int) -> None:
    loaded = load_verified(ASSET)
    images = np.random.default_rng(0).integers(0, 256, (num_rows, 8, 8, 1), dtype=np.uint8)
    found = loaded(images)
    assert {name: (a.shape, str(a.dtype)) for name, a in found.items()} == {
        "probabilities": ((num_rows, 10), "float32"),
        "logits": ((num_rows, 10), "float32"),
    }
    assert np.allclose(found["probabilities"].sum(axis=1), 1, atol=1e-6)


def test_a_batch_answers_as_its_rows_alone() -> None:
    loaded = load_verified(ASSET)
    images = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    together = loaded(images)["logits"]
    alone = np.concatenate([loaded(images[i : i + 1])["logits"] for i in range(9)])
    assert np.allclose(together, alone, atol=1e-5)


def test_a_flipped_bit_in_the_graph_is_found_before_it_is_loaded(copy: Path) -> None:
    data = bytearray((copy / "model.ts").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "model.ts").write_bytes(bytes(data))
    with pytest.raises(CorruptError, match=r"model\.ts is damaged"):
        load_verified(copy)


def test_a_graph_that_answers_otherwise_is_found_though_its_checksum_fits(copy: Path) -> None:
    with np.load(copy / "golden.npz") as archive:
        arrays = dict(archive)
    arrays["logits"][5, 3] += 0.01
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    (copy / "golden.npz").write_bytes(buffer.getvalue())
    reseal(copy)
    with pytest.raises(ParityError, match=r"digits@0001, golden test of 34 rows, call 1: 'logits' .* row 5, column 3"):
        load_verified(copy)


def test_golden_rows_of_another_signature_are_refused(copy: Path) -> None:
    signature = files.read_json(copy / "signature.json")
    signature["outputs"] = signature["outputs"][:1]
    files.write_json(copy / "signature.json", signature)
    reseal(copy)
    with pytest.raises(CorruptError, match=r"not what signature.json says"):
        load_verified(copy)


def test_a_newer_bundle_is_refused(copy: Path) -> None:
    manifest = json.loads((copy / "MANIFEST.json").read_text())
    manifest["format"] = 2
    files.write_json(copy / "MANIFEST.json", manifest)
    with pytest.raises(NewerFormat, match="Update hpctool"):
        load_verified(copy)


def test_a_bundle_of_format_1_loads_and_verifies_for_ever() -> None:
    loaded = load_verified(ASSET)
    assert loaded.num_golden == 34
    assert loaded.signature.classes == [str(digit) for digit in range(10)]
    assert loaded.signature.inputs[0].shape == [-1, 8, 8, 1]
    assert loaded.signature.inputs[0].dtype == np.uint8
    assert loaded(np.zeros((2, 8, 8, 1), np.uint8))["probabilities"].shape == (2, 10)
    assert loaded.bundle.lineage()["data"]["name"] == "digits"
    reference = loaded.bundle.reference()
    for histogram in [*reference["inputs"].values(), *reference["outputs"].values()]:
        assert sum(histogram["counts"]) + histogram["num_missing"] == reference["num_rows"]
