"""The temperature of a copper plate whose edges are held at 0 °C: the heat equation in 2-D, on any number of MPI ranks.

    cd examples/heat
    mpirun -n 4 python -m mpi4py heat.py                                  checkpoints lie in ./checkpoints
    mpirun -n 4 hpctool run cluster=inline script=heat.py                 … in the run, with logs and a state
    hpctool run script=heat.py cluster=local cluster.mpi=mpirun resources.tasks_per_node=4
    hpctool run script=heat.py cluster=slurm cluster.mpi=pmix resources.nodes=2 resources.tasks_per_node=4

Stopped or killed anywhere it goes on, and ends with the same bits. At the end it draws heat.png and compares with the
exact solution, which is known for this start: a sum of sine waves, each of which decays at a rate of its own.

∂u/∂t = α (∂²u/∂x² + ∂²u/∂y²), explicit in time, central differences in space. Each rank has a band of rows, with one
row of its neighbour's above and below (the halo), exchanged before every step. X columns, Y rows of this rank.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import matplotlib
import numpy as np
from mpi4py import MPI

import hpctool

ALPHA = 1.11e-4  # m²/s, copper
LENGTH = 0.1  # m, of an edge
#: °C, half waves along y and x
MODES = ((100.0, 1, 1), (60.0, 3, 2), (40.0, 2, 5))

ranks = MPI.COMM_WORLD
above = ranks.rank - 1 if ranks.rank > 0 else MPI.PROC_NULL
below = ranks.rank + 1 if ranks.rank < ranks.size - 1 else MPI.PROC_NULL


def exact(y_Y: np.ndarray, x_X: np.ndarray, time_s: float) -> np.ndarray:
    """The solution at these places (m), °C (Y, X)."""
    total_YX = np.zeros((len(y_Y), len(x_X)))
    for celsius, ky, kx in MODES:
        rate = ALPHA * (ky**2 + kx**2) * (np.pi / LENGTH) ** 2
        waves_YX = np.outer(np.sin(ky * np.pi * y_Y / LENGTH), np.sin(kx * np.pi * x_X / LENGTH))
        total_YX += celsius * np.exp(-rate * time_s) * waves_YX
    return total_YX


def exchange(u_YX: np.ndarray) -> None:
    """Fill the halo: the first and last row, from the neighbours; an edge of the plate stays as it is."""
    ranks.Sendrecv(u_YX[1], above, recvbuf=u_YX[-1], source=below)
    ranks.Sendrecv(u_YX[-2], below, recvbuf=u_YX[0], source=above)


def draw(path: Path, bands: list[np.ndarray], time_s: float) -> None:
    """The temperatures of all ranks as one picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 4), layout="constrained")
    extent = (0, 100 * LENGTH, 100 * LENGTH, 0)
    image = axes.imshow(np.concatenate(bands), cmap="inferno", extent=extent)
    axes.set(title=f"after {time_s:.2f} s", xlabel="x (cm)", ylabel="y (cm)")
    figure.colorbar(image, label="°C")
    # Without its date: the same temperatures are the same file.
    figure.savefig(path, dpi=100, metadata={"Software": None})


def main() -> None:
    """Take the steps, draw the plate, and compare it with the exact solution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=192, help="inner grid points along an edge")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--every", type=int, default=500, help="steps between two checkpoints")
    arguments = parser.parse_args()

    size, spacing = arguments.size, LENGTH / (arguments.size + 1)
    # Explicit steps are stable up to h² / 4α.
    step_s = 0.9 * spacing**2 / (4 * ALPHA)
    first, last = (size * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
    y_Y, x_X = (np.arange(first, last) + 1) * spacing, (np.arange(size) + 1) * spacing
    # One more point all around: the halo above and below, the cold edge left and right.
    u_YX = np.zeros((last - first + 2, size + 2))
    u_YX[1:-1, 1:-1] = exact(y_Y, x_X, 0.0)
    hottest: list[float] = []

    job = hpctool.Preemptible(every_steps=arguments.every)
    job.register(u=u_YX, hottest=hottest)
    for step in job.steps(arguments.steps):
        exchange(u_YX)
        inner = u_YX[1:-1, 1:-1]
        around = u_YX[:-2, 1:-1] + u_YX[2:, 1:-1] + u_YX[1:-1, :-2] + u_YX[1:-1, 2:]
        u_YX[1:-1, 1:-1] = inner + ALPHA * step_s / spacing**2 * (around - 4 * inner)
        if step % 100 == 0:
            hottest.append(ranks.allreduce(float(u_YX.max()), MPI.MAX))

    time_s = job.step * step_s
    off = float(np.abs(u_YX[1:-1, 1:-1] - exact(y_Y, x_X, time_s)).max())
    off = ranks.allreduce(off, MPI.MAX)
    bands = ranks.gather(u_YX[1:-1, 1:-1])
    if bands is not None:
        run = os.environ.get("HPCTOOL_RUN")
        draw(Path(run, "artifacts", "heat.png") if run else Path("heat.png"), bands, time_s)
        hot = max(band.max() for band in bands)
        print(
            f"After {time_s:.2f} s, on {ranks.size} ranks: {hot:.2f} °C at most, {off:.1e} °C off the exact solution."
        )


if __name__ == "__main__":
    main()
