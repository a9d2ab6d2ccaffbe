"""Layout: the one owner of every path in a dataset, and the rules for the names that people give.

<datasets>/<name>/
  FORMAT                          version, hash, which create-if-absent primitive this file system has
  objects/ab/<sha256>.h5          immutable arrays, mode 0444 (objects.py)
  manifests/ab/<sha256>.json      the table of contents of a version (manifest.py)
  commits/ab/<sha256>.json        parents, manifest, message, author, time, operation (commit.py)
  refs/heads/<branch>/0000000012  a log; the highest number is the tip
  refs/tags/<tag>                 created if absent, never moved
  tmp/                            what a killed writer leaves behind
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpctool.errors import CorruptError, InputError

#: The newest format of FORMAT, manifests and commits that this code reads, and the one that it writes; a manifest says
#: the lowest that can hold it. 2 came with ragged and compressed columns; nothing of 1 has changed its meaning.
FORMAT = 2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[0-9a-f]{64}")
_LIKE_A_COMMIT = re.compile(r"[0-9a-f]{7,64}")

DEFAULT_BRANCH = "main"


@dataclass(frozen=True)
class Layout:
    """Where everything of one dataset lies; `root` is `<datasets>/<name>`."""

    root: Path

    @property
    def format_file(self) -> Path:
        return self.root / "FORMAT"

    @property
    def heads(self) -> Path:
        return self.root / "refs" / "heads"

    @property
    def tags(self) -> Path:
        return self.root / "refs" / "tags"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    def object(self, object_id: str) -> Path:
        return self._addressed("objects", object_id, ".h5")

    def manifest(self, manifest_id: str) -> Path:
        return self._addressed("manifests", manifest_id, ".json")

    def commit(self, commit_id: str) -> Path:
        return self._addressed("commits", commit_id, ".json")

    def commits_like(self, prefix: str) -> list[str]:
        """The ids of the commits that begin with two or more hex digits, in order."""
        folder = self.root / "commits" / prefix[:2]
        return sorted(path.stem for path in folder.glob(f"{prefix}*.json"))

    def _addressed(self, kind: str, digest: str, suffix: str) -> Path:
        # An id read from a file is not trusted to stay inside the folder.
        if not _ID.fullmatch(digest):
            raise CorruptError(self.root, f"it refers to '{digest[:80]}', which is not a SHA-256")
        return self.root / kind / digest[:2] / f"{digest}{suffix}"


def check_name(kind: str, name: str) -> str:
    """The name itself, if a dataset, branch or tag may be called so. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of a {kind}: it begins with a letter or digit, and goes on with letters, "
            "digits, '.', '_' and '-' (at most 100)."
        )
    if kind != "dataset" and _LIKE_A_COMMIT.fullmatch(name):
        raise InputError(f"'{name}' cannot be the name of a {kind}: it looks like the beginning of a commit.")
    return name


def split_ref(ref: str) -> tuple[str, str]:
    """`name@revision` as (name, revision); the name alone means its main branch. Raises InputError."""
    name, at, revision = ref.partition("@")
    if at and not revision:
        raise InputError(f"'{ref}' has no revision after the @: a branch, a tag or the beginning of a commit.")
    return check_name("dataset", name), revision or DEFAULT_BRANCH
