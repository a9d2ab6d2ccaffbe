"""Publishing: a bundle appears whole under the next free number, or not at all.

It is written in a hidden folder beside the others and renamed. Renaming onto a folder that holds something fails,
so two exports at once get different numbers, and a kill leaves only a hidden folder that is swept later.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import CorruptError, NewerFormat
from hpctool.export.bundle import BUNDLE_FORMAT, LINEAGE, MANIFEST, Bundle, list_versions, manifest_digest, next_version
from hpctool.rundir import now, who

_READ_ONLY = 0o444
_STAGE = ".stage"
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Published:
    """A bundle, and whether it is new: the same content again finds the version that is there."""

    bundle: Bundle
    is_new: bool


@contextmanager
def staging(models: Path, name: str) -> Iterator[Path]:
    """A hidden folder in which the files of the next version are put; gone at the end unless it was published."""
    folder = models / name
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    staged = folder / files.temporary_name(_STAGE)
    staged.mkdir()
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # a first version that failed leaves nothing


def put(staged: Path, name: str, data: bytes) -> None:
    """Write one file of the bundle, durable and read-only."""
    files.write_durably(staged / name, data, mode=_READ_ONLY)


def put_json(staged: Path, name: str, value: dict[str, Any]) -> None:
    """Write one JSON file of the bundle with its format. Raises ValueError on NaN."""
    files.write_json(staged / name, {"format": BUNDLE_FORMAT, **value}, mode=_READ_ONLY)


def publish(staged: Path, lineage: dict[str, Any]) -> Published:
    """Publish a staged folder as the next version of its model, or find the version with the same content.

    `lineage` needs no version, time or author: these are added here and are not part of the content.
    """
    folder = staged.parent
    listed = {path.name: _entry(path) for path in sorted(staged.iterdir())}
    content = files.sha256_bytes(files.canonical_json({"files": listed, "lineage": lineage}))
    while True:
        for bundle in list_versions(folder.parent, folder.name):
            if _read(bundle, "content") == content:
                return Published(bundle, is_new=False)
        final = folder / next_version(folder)
        digest = _seal(staged, final, lineage, listed, content)
        if _rename(staged, final, digest):
            return Published(Bundle(final), is_new=True)


def _seal(staged: Path, final: Path, lineage: dict[str, Any], listed: dict[str, Any], content: str) -> str:
    """Write lineage and manifest for this number; the manifest's digest."""
    created = now()
    model = {"name": final.parent.name, "version": final.name}
    put_json(staged, LINEAGE, {"model": model, **lineage, "created": created, "by": who()})
    listed = {**listed, LINEAGE: _entry(staged / LINEAGE)}
    manifest = {"format": BUNDLE_FORMAT, "created": created, "files": listed, "content": content}
    manifest["digest"] = manifest_digest(manifest)
    files.write_json(staged / MANIFEST, manifest, mode=_READ_ONLY)
    files.fsync_dir(staged)
    return str(manifest["digest"])


def _rename(staged: Path, final: Path, digest: str) -> bool:
    """Whether the number is now ours; on NFS a lost reply is told from a lost race by looking whose it is."""
    try:
        os.rename(staged, final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT):
            raise
        return _read(Bundle(final), "digest") == digest
    files.fsync_dir(final.parent)
    return True


def _entry(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": files.sha256_file(path)}


def _read(bundle: Bundle, key: str) -> str:
    try:
        return str(bundle.manifest()[key])
    except (CorruptError, NewerFormat):
        return ""  # `models verify` speaks about it; here it only keeps its number


def _sweep(folder: Path) -> None:
    """Remove the staging folders of exports that died more than a day ago."""
    for path in folder.glob(f"{_STAGE}-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _DAY_S:
                shutil.rmtree(path, ignore_errors=True)
