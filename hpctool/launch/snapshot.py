"""The code that a run runs: copied at submission, so that editing the checkout changes nothing for what is queued.

    <runs>/.code/<12 hex>/project/…      the project one stands in: what git knows, or *.py, *.yaml …
    <runs>/.code/<12 hex>/site/hpctool/  hpctool itself, where it is installed from a checkout

The folder is named by the digest of what is in it, so a thousand runs of the same code share one copy.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.rundir import RunDir

#: What code consists of; data and results that lie in a checkout are not copied.
SUFFIXES = {".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".sbatch", ".html", ".js", ".css"}
MAX_FILES = 5_000
MAX_FILE_BYTES = 1 << 20
_SKIPPED = {"runs", "datasets", "models", "node_modules", "__pycache__", "build", "dist", "site-packages"}


@dataclass(frozen=True)
class Code:
    """A snapshot: its digest (empty where nothing could be copied), git's commit, and the uncommitted difference."""

    snapshot: str
    commit: str
    dirty: bool
    patch: str
    note: str = ""

    def record(self) -> dict[str, Any]:
        """What run.json and the ledger say of the code."""
        patch = files.sha256_bytes(self.patch.encode()) if self.patch else ""
        return {"commit": self.commit, "dirty": self.dirty, "snapshot": self.snapshot, "patch_sha256": patch}


def take(runs: Path, project: Path) -> Code:
    """Copy the code of `project` (the working folder) and of an editable hpctool below `runs`; reuse an equal copy."""
    commit, patch = _git(project, "rev-parse", "HEAD").strip(), _git(project, "diff", "HEAD")
    parts = [("site", path, name) for path, name in _own_package()]
    found = list(_project_files(project))
    note = ""
    if len(found) > MAX_FILES:
        note = f"{project} holds more than {MAX_FILES} code files, so it is not copied: jobs run what lies there then."
        found = []
    parts += [("project", path, name) for path, name in found]
    digest = files.sha256_bytes(
        files.canonical_json([[top, name, files.sha256_file(path)] for top, path, name in sorted(parts, key=str)])
    )[:12]
    _copy(runs / ".code" / digest, parts)
    return Code(digest, commit, bool(patch), patch, note)


def environment(rundir: RunDir) -> dict[str, str]:
    """The variables with which a process runs a run's snapshot and nothing of the working folder."""
    record = rundir.record()
    return environment_of(rundir.path.parent, record["code"], record["cwd"])


def environment_of(runs: Path, code: dict[str, Any], cwd: str) -> dict[str, str]:
    """The same from the code record and the working folder of a submission."""
    folder = (runs / ".code" / code["snapshot"]).resolve()
    # `site` first: in hpctool's own checkout, `project` holds the package without its conf and jobs.
    paths = [str(folder / "site"), str(folder / "project"), str(folder / "project" / "src")]
    if not (folder / "project").is_dir():
        paths.append(cwd)
    inherited = os.environ.get("PYTHONPATH", "")
    kept = [p for p in inherited.split(os.pathsep) if p and not _is_snapshot(p)]
    # Without PYTHONSAFEPATH, `python -m` puts the working folder first and the edited checkout would win.
    return {"PYTHONPATH": os.pathsep.join([*paths, *kept]), "PYTHONSAFEPATH": "1"}


def installed_packages() -> str:
    """`name==version` of every installed package, one a line, after a line for Python itself."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]}
    modules = os.environ.get("LOADEDMODULES", "")
    head = [f"# Python {sys.version.split()[0]} at {sys.executable}", f"# modules: {modules or 'none'}"]
    return "\n".join([*head, *sorted(found, key=str.lower)]) + "\n"


def _is_snapshot(path: str) -> bool:
    return "/.code/" in path


def _own_package() -> Iterator[tuple[Path, str]]:
    """The files of hpctool with conf and jobs at the places where the wheel would have them."""
    for package in ("hpctool", "hpctool.conf", "hpctool.jobs"):
        root = Path(next(iter(importlib.import_module(package).__path__)))
        if "site-packages" in root.parts:
            continue
        inside = package.replace(".", "/")
        for path in _walk(root):
            yield path, f"{inside}/{path.relative_to(root)}"


def _project_files(project: Path) -> Iterator[tuple[Path, str]]:
    listed = _git(project, "ls-files", "-coz", "--exclude-standard").split("\0")
    paths = [project / name for name in listed if name] if any(listed) else list(_walk(project))
    for path in paths[: MAX_FILES + 1]:
        if path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            yield path, str(path.relative_to(project))


def _walk(root: Path) -> Iterator[Path]:
    seen = 0
    for folder, names, leaves in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith(".") and not _is_venv(folder, n))
        for leaf in sorted(leaves):
            if Path(leaf).suffix in SUFFIXES or leaf == "py.typed":
                seen += 1
                yield Path(folder) / leaf
            if seen > MAX_FILES:
                return


def _is_venv(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))


def _copy(final: Path, parts: list[tuple[str, Path, str]]) -> None:
    if final.is_dir():
        return
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = final.parent / files.temporary_name()
    for top, path, name in parts:
        target = temporary / top / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    temporary.mkdir(exist_ok=True)
    try:
        os.rename(temporary, final)
    except OSError:
        # Somebody else has made the same copy meanwhile.
        shutil.rmtree(temporary)
        if not final.is_dir():
            raise


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
