"""scripts/soak: rehearsals one after the other until enough faults have struck, and a summary."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hpctool.chaos.report import Verdict
from hpctool.errors import HpctoolError
from tests.chaos.scenarios import SCENARIOS, make_project, rehearse

#: faults of one rehearsal
_EACH = 18
_DISK_MB = 64


def main() -> int:
    """The exit code: 0 if every rehearsal ended with the same bits and lost nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=sorted(SCENARIOS), default=None)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further rehearsal after this")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    names = [arguments.only] if arguments.only else list(SCENARIOS)
    began_s = time.monotonic()
    verdicts: list[tuple[str, Verdict]] = []
    broken: list[str] = []
    struck = number = 0
    with project() as root:
        while struck < arguments.faults and time.monotonic() < began_s + 60 * arguments.minutes:
            name, mine = names[number % len(names)], seed + number
            number += 1
            print(f"-- {name}, seed {mine}: {struck} faults so far", flush=True)
            folder = root / "chaos" / f"{name}-{mine}"
            try:
                verdict = rehearse(name, folder, min(_EACH, arguments.faults - struck), mine)
            except HpctoolError as error:
                broken.append(f"{name}, seed {mine}: {error}")
                print(f"   BROKEN: {error}", flush=True)
                continue
            verdicts.append((name, verdict))
            struck += len(verdict.struck)
            print(*verdict.sentences(), sep="\n", flush=True)
            if verdict.is_good:
                shutil.rmtree(folder)
            else:
                kept = Path(tempfile.mkdtemp(prefix="soak-")) / folder.name
                shutil.copytree(folder, kept, symlinks=True)
                shutil.rmtree(folder)
                print(f"   kept in {kept}", flush=True)
    print(summary(verdicts, broken, seed, time.monotonic() - began_s))
    return 0 if verdicts and not broken and all(verdict.is_good for _, verdict in verdicts) else 1


def summary(verdicts: list[tuple[str, Verdict]], broken: list[str], seed: int, took_s: float) -> str:
    """What came of it all, in a few lines."""
    faults = Counter(o.fault.kind for _, v in verdicts for o in v.struck)
    by_name = Counter({name: 0 for name, _ in verdicts})
    for name, verdict in verdicts:
        by_name[name] += len(verdict.struck)
    different = sum(not verdict.is_equal for _, verdict in verdicts)
    lost = sum(verdict.commits_lost for _, verdict in verdicts)
    lines = [
        f"{faults.total()} faults in {len(verdicts)} rehearsals, {sum(v.attempts for _, v in verdicts)} attempts, "
        f"{took_s / 60:.0f} min, seed {seed}: {different} digests different, {lost} commits lost",
        "by kind: " + ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())),
        "by job: " + ", ".join(f"{name} {count}" for name, count in by_name.items()),
        *(f"not as it should be: {name}, seed {v.seed}: {v.sentences()[0]}" for name, v in verdicts if not v.is_good),
        *(f"given up: {text}" for text in broken),
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def project() -> Iterator[Path]:
    """A project to stand in; as root on a small file system of its own."""
    root = Path(tempfile.mkdtemp(prefix="hpctool-soak-"))
    small = os.getuid() == 0 and _mounted(root)
    print(f"in {root}" + (f", a file system of {_DISK_MB} MB" if small else ""), flush=True)
    try:
        make_project(root)
        os.chdir(root)
        sys.path.insert(0, str(root))
        os.environ |= {
            "PYTHONPATH": str(root),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        yield root
    finally:
        os.chdir("/")
        if small:
            # A supervisor may still be leaving.
            subprocess.run(["umount", "--lazy", str(root)], check=False)
        shutil.rmtree(root, ignore_errors=True)


def _mounted(root: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=700", "hpctool-soak", str(root)]
    return shutil.which("mount") is not None and subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
