"""MANIFEST.json: which files a checkpoint has, how long they are and what their bytes add up to."""

from __future__ import annotations

import errno
import json
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
    path = folder / NAME
    try:
        body = files.read_json(path)
        if body["format"] > FORMAT:
            raise NewerFormat(path, "checkpoint", body["format"], FORMAT)
        if body["digest"] != _digest(body) or digest not in (None, body["digest"]):
            raise CorruptError(path, "it is not the manifest that was committed")
        for name, entry in body["files"].items():
            _check_size(folder / name, entry["size_bytes"])
            if files.sha256_file(folder / name) != entry["sha256"]:
                raise CorruptError(folder / name, "its checksum differs")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptError(folder, f"{Path(error.filename).name} is missing") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(path, f"it does not read like a manifest ({error!r})") from error
    except OSError as error:
        if error.errno != errno.EIO:  # a dying disk is damage; a permission or a lost server is not
            raise
        raise CorruptError(folder, f"it cannot be read ({error})") from error
    return Manifest(folder, body)


def _check_size(path: Path, expected_bytes: int) -> None:
    found_bytes = path.stat().st_size
    if found_bytes != expected_bytes:
        raise CorruptError(path, f"it has {found_bytes} bytes and should have {expected_bytes}")


def _digest(body: dict[str, Any]) -> str:
    return files.sha256_bytes(files.canonical_json({k: v for k, v in body.items() if k != "digest"}))
