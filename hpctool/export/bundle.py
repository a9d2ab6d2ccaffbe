"""Bundles as they lie on disk, for readers: models/<name>/<NNNN>/, immutable, with everything a server needs.

model.ts         the graph: preprocessing, model, probabilities
signature.json   inputs, outputs, classes, preprocessing        (signature.py)
golden.npz       inputs and the original's answers, to test with (golden.py)
reference.json   bins for drift, class prior, confusion, calibration (reference.py)
lineage.json     run, code, config and data commit it was made from
MANIFEST.json    size and checksum of each file, `content` (what it is) and `digest` (this very bundle)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import ConfigError, CorruptError, NewerFormat, UnknownName
from hpctool.export.signature import Signature

BUNDLE_FORMAT = 1
MANIFEST = "MANIFEST.json"
LINEAGE = "lineage.json"
#: Every bundle has these; the graphs depend on the formats that were asked for.
REQUIRED = ("signature.json", "golden.npz", "reference.json", LINEAGE)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"\d{4,}")


def check_name(key: str, name: str) -> str:
    """`name` if a folder and a command line can carry it. Raises ConfigError on `key`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(key, f"'{name}' cannot name it; use letters, digits, '-', '_' and '.', a letter first.")
    return name


@dataclass(frozen=True)
class Bundle:
    """One published version of a model. Every reader raises CorruptError, and NewerFormat on a newer format."""

    path: Path

    @property
    def name(self) -> str:
        """The model's name."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """The number as the folder shows it: `0003`."""
        return self.path.name

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    def manifest(self) -> dict[str, Any]:
        """MANIFEST.json, checked against its own digest: format, created, files, content, digest."""
        manifest = self._read(MANIFEST)
        if manifest.get("digest") != manifest_digest(manifest):
            raise CorruptError(self.path / MANIFEST, "its digest does not fit what it says")
        return manifest

    def signature(self) -> Signature:
        return Signature.from_json(self._read("signature.json"))

    def reference(self) -> dict[str, Any]:
        return self._read("reference.json")

    def lineage(self) -> dict[str, Any]:
        return self._read(LINEAGE)

    def check_files(self) -> dict[str, Any]:
        """Compare every file with the manifest, which is returned. Raises CorruptError naming the file."""
        manifest = self.manifest()
        for name in REQUIRED:
            if name not in manifest["files"]:
                raise CorruptError(self.path / MANIFEST, f"it does not list {name}")
        for name, said in manifest["files"].items():
            path = self.path / name
            try:
                size_bytes = path.stat().st_size
            except FileNotFoundError:
                raise CorruptError(self.path, f"{name} is missing", _ADVICE) from None
            if size_bytes != said["size_bytes"]:
                raise CorruptError(path, f"it has {size_bytes} bytes instead of {said['size_bytes']}", _ADVICE)
            if files.sha256_file(path) != said["sha256"]:
                raise CorruptError(path, "its bytes are not those that were published", _ADVICE)
        return manifest

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            value: dict[str, Any] = files.read_json(path)
        except FileNotFoundError:
            raise CorruptError(self.path, f"{name} is missing", _ADVICE) from None
        if not isinstance(value, dict):
            raise CorruptError(path, "it holds no JSON object")
        if value.get("format", 0) > BUNDLE_FORMAT:
            raise NewerFormat(path, "bundle", value["format"], BUNDLE_FORMAT)
        return value


_ADVICE = "Roll back to another version, or export the run again."


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The digest of a manifest: everything it says except the digest itself."""
    return files.sha256_bytes(files.canonical_json({k: v for k, v in manifest.items() if k != "digest"}))


def list_models(models: Path) -> list[str]:
    """The names of all models that have a version, in alphabetical order."""
    return sorted(p.name for p in _folders(models) if _NAME.fullmatch(p.name) and list_versions(models, p.name))


def list_versions(models: Path, name: str) -> list[Bundle]:
    """The published versions of a model, oldest first; empty where there is none."""
    found = (p for p in _folders(models / name) if _VERSION.fullmatch(p.name) and (p / MANIFEST).exists())
    return [Bundle(path) for path in sorted(found, key=lambda p: int(p.name))]


def next_version(folder: Path) -> str:
    """The number after the highest in use in a model's folder; a damaged version keeps its number."""
    taken = (int(p.name) for p in _folders(folder) if _VERSION.fullmatch(p.name))
    return f"{max(taken, default=0) + 1:04d}"


def find_version(models: Path, name: str, number: str) -> Bundle:
    """The version `0003` or `3` of a model. Raises UnknownName."""
    versions = known_versions(models, name)
    for bundle in versions:
        if int(bundle.version) == int(number):
            return bundle
    raise UnknownName(f"version of model '{name}' called", number, [b.version for b in versions])


def known_versions(models: Path, name: str) -> list[Bundle]:
    """The versions of a model that has some, oldest first. Raises UnknownName."""
    versions = list_versions(models, name) if _NAME.fullmatch(name) else []
    if not versions:
        make = f"Make it: hpctool export run=… bundle.name={name}"
        raise UnknownName("model", name, list_models(models), f"They lie in {models.absolute()}.", make)
    return versions


def _folders(folder: Path) -> Iterable[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
