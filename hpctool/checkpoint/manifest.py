"""MANIFEST.json: which files a checkpoint has, how long they are and what their bytes add up to.

It also says what the checkpoint was made of and after, so that two runs can be compared step by step (format 2):

    param_digest    of the parameters' values alone: equal for equal parameters (of as many ranks, where sharded)
    state_digest    of all files: equal if optimizer, random streams and everything else are equal, too
    before          the digest of the checkpoint before, in this run; empty for the first. `digest` covers it: a chain
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.checkpoint.snapshot import FORMAT
from hpctool.errors import CorruptError, NewerFormat

NAME = "MANIFEST.json"


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's table of contents; `body` is MANIFEST.json as it stands."""

    path: Path
    body: dict[str, Any]

    @property
    def digest(self) -> str:
        """The digest of the whole: every file's size and checksum, the step, the attempt, the info."""
        return str(self.body["digest"])


def make(folder: Path, head: dict[str, Any], entries: dict[str, dict[str, Any]]) -> Manifest:
    """Write the manifest of the files that all ranks have reported: name → size_bytes and sha256.

    Raises CorruptError where a file is not there in the reported size, OSError.
    """
    for name, entry in entries.items():
        _check_size(folder / name, entry["size_bytes"])
    body = {"format": FORMAT, **head, "files": entries}
    body["digest"] = _digest(body)
    files.write_durably(folder / NAME, json.dumps(body, indent=1).encode() + b"\n", mode=0o600)
    return Manifest(folder, body)


def verify(folder: Path, digest: str | None = None) -> Manifest:
    """Read a checkpoint's every byte and compare sizes and checksums; `digest` is what the ledger says of it.

    Raises CorruptError that says what does not fit, NewerFormat, OSError where the file system cannot be asked.
    """
    found = read(folder, digest)
    check_files(found, found.body["files"])
    return found


def read(folder: Path, digest: str | None = None) -> Manifest:
    """The manifest of a checkpoint whose files have the right sizes; raises as `verify` does."""
    path = folder / NAME
    with _damage(folder, path):
        body = files.read_json(path)
        if body["format"] > FORMAT:
            raise NewerFormat(path, "checkpoint", body["format"], FORMAT)
        if body["digest"] != _digest(body) or digest not in (None, body["digest"]):
            raise CorruptError(path, "it is not the manifest that was committed")
        for name, entry in body["files"].items():
            _check_size(folder / name, entry["size_bytes"])
    return Manifest(folder, _migrated(body))


def check_files(manifest: Manifest, names: Iterable[str]) -> None:
    """Compare the checksums of some of a checkpoint's files; raises as `verify` does."""
    with _damage(manifest.path, manifest.path / NAME):
        for name in names:
            if files.sha256_file(manifest.path / name) != manifest.body["files"][name]["sha256"]:
                raise CorruptError(manifest.path / name, "its checksum differs")


def state_digest(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The digest of all files' contents: name → sha256 among others."""
    return files.sha256_bytes(files.canonical_json({name: entry["sha256"] for name, entry in entries.items()}))


def _migrated(body: dict[str, Any]) -> dict[str, Any]:
    """A manifest of format 1 as if it were of format 2; it had nothing to compare runs by."""
    return {"param_digest": "", "state_digest": "", "before": "", **body}


@contextmanager
def _damage(folder: Path, path: Path) -> Iterator[None]:
    """Say as a CorruptError what in this block means damage."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptError(folder, f"{Path(error.filename).name} is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(path, f"it does not read like a manifest ({error!r})") from error
    except OSError as error:
        if error.errno != errno.EIO:  # a dying disk is damage; a permission or a lost server is not
            raise
        raise CorruptError(folder, f"it cannot be read ({error})") from error


def _check_size(path: Path, expected_bytes: int) -> None:
    found_bytes = path.stat().st_size
    if found_bytes != expected_bytes:
        raise CorruptError(path, f"it has {found_bytes} bytes and should have {expected_bytes}")


def _digest(body: dict[str, Any]) -> str:
    return files.sha256_bytes(files.canonical_json({k: v for k, v in body.items() if k != "digest"}))
