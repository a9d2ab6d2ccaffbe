"""The code that a run runs: copied at submission, so that editing the checkout changes nothing for what is queued.

    <runs>/.code/<12 hex>/project/…      the project one stands in: what git knows, or *.py, *.yaml …
    <runs>/.code/<12 hex>/site/hpctool/  hpctool itself, where it is installed from a checkout
    <runs>/.code/<12 hex>.patch          what git has not committed of it, named by its own digest

The folder is named by the digest of what is in it, so a thousand runs of the same code share one copy.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.errors import InputError, listing
from hpctool.rundir import RunDir

#: What code consists of; data and results that lie in a checkout are not copied.
SUFFIXES = {".py", ".pyi", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".sh", ".sbatch", ".html", ".j2", ".js", ".css"}
MAX_FILES = 5_000
MAX_FILE_BYTES = 1 << 20
#: a program that a run starts may be compiled
MAX_PROGRAM_BYTES = 64 << 20
#: what the head of a report says that hpctool has written (*.html.j2): a result, wherever it lies
_REPORT = b'<meta name="generator" content="hpctool">'
_SKIPPED = {"runs", "datasets", "models", "node_modules", "__pycache__", "build", "dist", "site-packages"}

#: a file of a snapshot: the folder of the copy that it belongs to, where it lies, its name in that folder
Part = tuple[str, Path, str]


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


def take(runs: Path, project: Path, also: Iterable[Path] = ()) -> Code:
    """Copy the code of `project` (the working folder) and of an editable hpctool below `runs`; reuse an equal copy.

    `also` are files that belong to it wherever they lie and whatever they are called. Raises InputError where Python
    could not find the copy.
    """
    if os.pathsep in str(runs.resolve()):
        raise InputError(
            f"Runs in {runs.resolve()} would not find their code: Python splits PYTHONPATH at '{os.pathsep}'. "
            "Choose a folder without one: paths.runs=…"
        )
    commit, patch = _git(project, "rev-parse", "HEAD").strip(), _git(project, "diff", "HEAD")
    parts = [("site", path, name) for path, name in _own_package()]
    found = list(_project_files(project))
    note = ""
    if len(found) > MAX_FILES:
        note = f"{project} holds more than {MAX_FILES} code files, so it is not copied: jobs run what lies there then."
        found = []
        also = ()
    parts += [("project", path, name) for path, name in found]
    parts = sorted(dict.fromkeys([*parts, *_further(project, also)]))
    code = Code(_stored(runs / ".code", parts), commit, bool(patch), patch, note)
    if patch:
        files.write_atomic(_patch_file(runs, code.record()), patch)
    return code


def patch_of(runs: Path, code: dict[str, Any]) -> str | None:
    """The uncommitted difference of a code record; None where it was not kept."""
    try:
        # As bytes: lines may end in \r\n.
        return _patch_file(runs, code).read_bytes().decode() if code["patch_sha256"] else ""
    except FileNotFoundError:
        return None


def _patch_file(runs: Path, code: dict[str, Any]) -> Path:
    return runs / ".code" / f"{code['patch_sha256'][:12]}.patch"


def environment(rundir: RunDir) -> dict[str, str]:
    """The variables with which a process runs a run's snapshot and nothing of the working folder."""
    return environment_of(rundir.path.parent, rundir.code(), rundir.record()["cwd"])


def environment_of(runs: Path, code: dict[str, Any], cwd: str) -> dict[str, str]:
    """The same from the code record and the working folder of a submission."""
    folder = (runs / ".code" / code["snapshot"]).resolve()
    # `site` first: in hpctool's own checkout, `project` holds the package without its conf and jobs.
    paths = [str(folder / "site"), str(folder / "project"), str(folder / "project" / "src")]
    if not (folder / "project").is_dir():
        paths.append(cwd)
    # Without PYTHONSAFEPATH, `python -m` puts the working folder first and the edited checkout would win.
    return {"PYTHONPATH": os.pathsep.join([*paths, *inherited_paths()]), "PYTHONSAFEPATH": "1"}


def find(runs: Path, code: dict[str, Any], cwd: str, path: Path) -> Path:
    """The copy of a file in a submission's snapshot; the file itself where there is no copy."""
    folder = runs / ".code" / code["snapshot"]
    inside = [folder / "project" / path.relative_to(cwd)] if path.is_relative_to(cwd) else []
    copies = [copy for copy in (*inside, folder / "elsewhere" / str(path).lstrip("/")) if copy.is_file()]
    return copies[0].resolve() if copies else path


def project(runs: Path, code: dict[str, Any], cwd: str) -> Path:
    """The copy of the working folder's code; the working folder itself where there is no copy."""
    copy = runs / ".code" / code["snapshot"] / "project"
    return copy.resolve() if copy.is_dir() else Path(cwd)


def inherited_paths() -> list[str]:
    """What stands in this process's PYTHONPATH apart from snapshots."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and "/.code/" not in path]


def installed_packages() -> str:
    """`name==version` of every installed package, one a line, after a line for Python itself."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]}
    modules = os.environ.get("LOADEDMODULES", "")
    head = [f"# Python {sys.version.split()[0]} at {sys.executable}", f"# modules: {modules or 'none'}"]
    return "\n".join([*head, *sorted(found, key=str.lower)]) + "\n"


def say_changes(rundir: RunDir) -> None:
    """Print what has changed in the environment since the run was submitted: another Python, module or package."""
    if not rundir.environment_txt.exists():
        return
    before, after = (_by_name(text) for text in (rundir.environment_txt.read_text(), installed_packages()))
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    words = [f"{name} {before.get(name, 'absent')} → {after.get(name, 'absent')}" for name in changed]
    if words:
        print(f"hpctool: the environment is not that of the submission: {listing(words)}.", flush=True)


def _by_name(text: str) -> dict[str, str]:
    """`numpy==2.1` → numpy: 2.1, and the comment lines at the top as Python and modules."""
    found = {}
    for line in text.splitlines():
        head, version = line.removeprefix("# Python ").partition(" at ")[0], line.partition("==")[2]
        if line.startswith("# modules: "):
            found["modules"] = line.removeprefix("# modules: ")
        else:
            found["Python" if line.startswith("# Python ") else line.partition("==")[0]] = version or head
    return found


def _own_package() -> Iterator[tuple[Path, str]]:
    """The files of hpctool with conf and jobs at the places where the wheel would have them."""
    for package in ("hpctool", "hpctool.conf", "hpctool.jobs"):
        root = Path(next(iter(importlib.import_module(package).__path__)))
        if "site-packages" in root.parts:
            continue
        inside = package.replace(".", "/")
        for path in _walk(root, only_code=False):
            yield path, f"{inside}/{path.relative_to(root)}"


def _project_files(project: Path) -> Iterator[tuple[Path, str]]:
    listed = _git(project, "ls-files", "-coz", "--exclude-standard").split("\0")
    paths = [project / name for name in listed if name] if any(listed) else list(_walk(project))
    for path in paths[: MAX_FILES + 1]:
        is_code = path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES
        if is_code and not _is_report(path):
            yield path, str(path.relative_to(project))


def _is_report(path: Path) -> bool:
    if path.suffix != ".html":
        return False
    with open(path, "rb") as file:
        return _REPORT in file.read(512)


def _further(project: Path, also: Iterable[Path]) -> Iterator[tuple[str, Path, str]]:
    """Single files with what a script finds beside itself. Programs that are installed somewhere are left there."""
    for path in also:
        if not path.is_file() or path.stat().st_size > MAX_PROGRAM_BYTES:
            continue
        if path.is_relative_to(project):
            yield "project", path, str(path.relative_to(project))
            continue
        with open(path, "rb") as file:
            if file.read(4) == b"\x7fELF":
                continue
        beside = [other for other, _ in _project_files(path.parent)] if path.suffix == ".py" else []
        for other in [path, *(beside if len(beside) <= MAX_FILES else [])]:
            yield "elsewhere", other, str(other).lstrip("/")


def _walk(root: Path, only_code: bool = True) -> Iterator[Path]:
    seen = 0
    for folder, names, leaves in os.walk(root):
        names[:] = sorted(n for n in names if n not in _SKIPPED and not n.startswith(".") and not _is_venv(folder, n))
        for leaf in sorted(leaves):
            # Our own package has templates, too, and whatever else its rooms ship.
            if Path(leaf).suffix in SUFFIXES or not only_code:
                seen += 1
                yield Path(folder) / leaf
            if seen > MAX_FILES:
                return


def _is_venv(folder: str, name: str) -> bool:
    return os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))


def _stored(folder: Path, parts: list[Part]) -> str:
    """The digest of these files; `folder` has a copy of that name, whole also after a power loss. Raises OSError."""
    digest = _digest(parts)
    if (folder / digest).is_dir():
        return digest
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / files.temporary_name()
    temporary.mkdir()
    try:
        for top, path, name in parts:
            target = temporary / top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        # Of what was copied: an editor may have saved since.
        digest = _digest(parts, temporary)
        _sync(temporary)
        os.rename(temporary, folder / digest)
        files.fsync_dir(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # Else somebody has made the same copy meanwhile.
        if not isinstance(error, OSError) or not (folder / digest).is_dir():
            raise
    return digest


def _digest(parts: list[Part], copy: Path | None = None) -> str:
    """What names a snapshot: the files' names, and what is in them, or in their copies."""
    listed = [
        [top, name, files.sha256_file(copy / top / name if copy else path), os.access(path, os.X_OK)]
        for top, path, name in parts
    ]
    return files.sha256_bytes(files.canonical_json(listed))[:12]


def _sync(folder: Path) -> None:
    # After all have been written: then the first one costs most of it.
    for inner, _, leaves in os.walk(folder):
        for leaf in leaves:
            with open(os.path.join(inner, leaf), "rb") as file:
                os.fsync(file.fileno())
        files.fsync_dir(Path(inner))


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
