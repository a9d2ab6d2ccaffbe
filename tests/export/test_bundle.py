"""Bundles on disk: what is changed, missing or newer is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpctool.errors import ConfigError, CorruptError, NewerFormat, UnknownName
from hpctool.export import bundle
from hpctool.export.bundle import Bundle
from tests.export.conftest import Make


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model.ts", "golden.npz", "signature.json", "reference.json", "lineage.json"])
def test_a_flipped_bit_is_found_in_every_file(make_bundle: Make, name: str) -> None:
    found = make_bundle().bundle
    data = bytearray((found.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(found.path / name, bytes(data))
    with pytest.raises(CorruptError, match=f"{name} is damaged: its bytes are not those that were published"):
        found.check_files()


def test_a_file_that_is_cut_short_or_gone_is_found(make_bundle: Make) -> None:
    found = make_bundle().bundle
    overwrite(found.path / "model.ts", b"on")
    with pytest.raises(CorruptError, match="it has 2 bytes instead of 3"):
        found.check_files()
    (found.path / "model.ts").unlink()
    with pytest.raises(CorruptError, match=r"model\.ts is missing"):
        found.check_files()


def test_a_manifest_that_was_edited_is_found(make_bundle: Make) -> None:
    found = make_bundle().bundle
    manifest = json.loads((found.path / "MANIFEST.json").read_text())
    manifest["files"]["model.ts"]["sha256"] = "0" * 64
    overwrite(found.path / "MANIFEST.json", json.dumps(manifest).encode())
    with pytest.raises(CorruptError, match="its digest does not fit"):
        found.manifest()


@pytest.mark.parametrize("name", ["MANIFEST.json", "signature.json", "reference.json", "lineage.json"])
def test_a_newer_format_is_refused(make_bundle: Make, name: str) -> None:
    found = make_bundle().bundle
    overwrite(found.path / name, json.dumps({"format": 2}).encode())
    read = {
        "MANIFEST.json": found.manifest,
        "signature.json": found.signature,
        "reference.json": found.reference,
        "lineage.json": found.lineage,
    }[name]
    with pytest.raises(NewerFormat, match="is a bundle of format 2; this hpctool reads up to 1"):
        read()


def test_versions_are_found_by_number_and_others_are_listed(make_bundle: Make, tmp_path: Path) -> None:
    for text in ("one", "two"):
        make_bundle(text)
    models = tmp_path / "models"
    assert bundle.find_version(models, "digits", "2") == bundle.find_version(models, "digits", "0002")
    with pytest.raises(UnknownName, match="no version of model 'digits' called '7'; there is: 0001, 0002"):
        bundle.find_version(models, "digits", "7")
    with pytest.raises(UnknownName, match=r"no model 'digit'; there is: digits. Did you mean digits"):
        bundle.known_versions(models, "digit")
    with pytest.raises(UnknownName, match=r"no model '\.\./x'"):
        bundle.known_versions(models, "../x")


def test_ten_thousand_versions_are_in_order(tmp_path: Path) -> None:
    for number in ("9999", "10000", "0002", "aliases", ".stage-x"):
        (tmp_path / "digits" / number).mkdir(parents=True)
        (tmp_path / "digits" / number / "MANIFEST.json").touch()
    assert [b.version for b in bundle.list_versions(tmp_path, "digits")] == ["0002", "9999", "10000"]
    assert bundle.next_version(tmp_path / "digits") == "10001"


@pytest.mark.parametrize("name", ["", "a/b", "a@b", ".hidden", "-x", "a b"])
def test_a_name_that_a_folder_cannot_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"bundle\.name"):
        bundle.check_name("bundle.name", name)


def test_nothing_there_is_an_empty_list(tmp_path: Path) -> None:
    assert bundle.list_models(tmp_path / "nowhere") == []
    assert bundle.list_versions(tmp_path, "digits") == []
    assert str(Bundle(tmp_path / "digits" / "0003")) == "digits@0003"
