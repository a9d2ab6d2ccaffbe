"""How long a sweep takes from the command until its jobs are queued, beside hydra-submitit-launcher on the same config.

    python scripts/bench/submit.py [--cells 1000] [--more 10000]

On the throwaway cluster where it is up (scripts/cluster up), as its ordinary user; else on any Slurm that is here; else
with a stand-in for sbatch that answers at once. The peer is installed into a virtual environment of its own, in a
temporary folder. Jobs are submitted held, so nothing runs, and are cancelled in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PEER = ("hydra-submitit-launcher==1.2.0", "hydra-core==1.3.8", "submitit==1.5.4")
PEER_APP = """
import hydra

@hydra.main(version_base=None, config_path="conf", config_name="train")
def main(cfg):
    pass

main()
"""
SBATCH = """#!/bin/sh
answer=$({real} "$@")
code=$?
echo "$(date +%s.%N) $answer" >> {log}
echo "$answer"
exit $code
"""


class Queue:
    """An sbatch in front of the real one, or of none, that notes when jobs were taken."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "taken"
        self.real = shutil.which("sbatch")
        program = folder / "bin" / "sbatch"
        program.parent.mkdir()
        program.write_text(SBATCH.format(real=self.real or "echo Submitted batch job 1 #", log=self.log))
        program.chmod(0o755)
        self.environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}

    def seconds(self, command: list[str], cwd: Path) -> float:
        """From the command until it has submitted; then it is ended, if it has not ended by itself."""
        self.log.write_text("")
        began_s = time.time()
        with subprocess.Popen(
            command, cwd=cwd, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None and not self.taken():
                time.sleep(0.01)
            if not self.taken():
                sys.exit(f"{' '.join(command[:4])} … submitted nothing:\n{process.stderr and process.stderr.read()}")
            # Ours writes down what it has submitted; the peer waits for the end of all its jobs.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            process.kill()
        lines = self.taken()
        if self.real:
            subprocess.run(["scancel", *(line.split()[-1] for line in lines)], check=False)
        return float(lines[-1].split()[0]) - began_s

    def taken(self) -> list[str]:
        return self.log.read_text().splitlines()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1000, help="cells of the sweep that both submit")
    parser.add_argument("--more", type=int, default=10_000, help="cells of a larger sweep of ours")
    parser.add_argument("--as-user", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args(arguments)
    cluster = CHECKOUT / "scripts" / "cluster"
    if (
        os.geteuid() == 0
        and not told.as_user
        and subprocess.run([cluster, "status"], capture_output=True).returncode == 0
    ):
        os.execv(cluster, [str(cluster), "run-as-user", sys.executable, __file__, *arguments, "--as-user"])
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), told.cells, told.more)


def measure(folder: Path, num_cells: int, num_more: int) -> None:
    queue = Queue(folder)
    print(f"sbatch: {queue.real or 'a stand-in that answers at once (there is no Slurm here)'}")
    hpctool = [sys.executable, "-m", "hpctool.cli.main"]
    subprocess.run([*hpctool, "prepare", "data.name=digits"], cwd=folder, check=True, capture_output=True)
    ours = [*hpctool, "train", "-m", "cluster=slurm", "+cluster.extra.hold=null", "data.name=digits"]
    first = queue.seconds([*ours, f"seed=range(0,{num_cells})"], folder)
    print(f"hpctool                  {num_cells:>6,} cells queued after {first:7.2f} s")
    more = queue.seconds([*ours, f"seed=range(1,{num_more + 1})"], folder)
    print(f"hpctool                  {num_more:>6,} cells queued after {more:7.2f} s")
    peer = queue.seconds([*peer_command(folder), f"seed=range(0,{num_cells})"], folder)
    print(f"hydra-submitit-launcher  {num_cells:>6,} cells queued after {peer:7.2f} s")
    print(f"ratio at {num_cells:,} cells: {peer / first:.0f}")


def peer_command(folder: Path) -> list[str]:
    """The peer's way to submit the same composed config, in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
    shutil.copytree(CHECKOUT / "conf", folder / "conf")
    (folder / "app.py").write_text(PEER_APP)
    launcher = ["hydra/launcher=submitit_slurm", "+hydra.launcher.additional_parameters.hold=true"]
    return [python, "app.py", "-m", *launcher, "hydra.launcher.mem_gb=null", "data.name=digits"]


if __name__ == "__main__":
    main(sys.argv[1:])
