"""A rank knows its place, whoever started it."""

from __future__ import annotations

import pytest

from hpctool.errors import WorldError
from hpctool.place import Place, place_from_environment

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NUM_NODES": "2",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, Place()),
        (BATCH, Place()),  # a batch script is no rank
        (SRUN, Place(5, 7, 1, 2, "slurm")),
        ({**SRUN, "SLURM_PROCID": "6", "SLURM_LOCALID": "0", "SLURM_NODEID": "3"}, Place(6, 7, 0, 1, "slurm")),
        (OPENMPI, Place(3, 4, 1, 2, "openmpi")),
        (MPICH, Place(3, 4, 1, 2, "mpich")),
        (TORCH, Place(3, 4, 1, 2, "torchrun")),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Place(3, 4, 0, 4, "torchrun")),
        # mpirun and torchrun inside a batch job or a step: the nearer launcher counts
        ({**BATCH, **OPENMPI}, Place(3, 4, 1, 2, "openmpi")),
        ({**SRUN, **MPICH}, Place(3, 4, 1, 2, "mpich")),
        ({**SRUN, **TORCH}, Place(3, 4, 1, 2, "torchrun")),
        # what started one rank, which then started more
        (
            {**OPENMPI, **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1"), "RANK": "0", "LOCAL_RANK": "0"},
            Place(3, 4, 1, 2, "openmpi"),
        ),
        # srun --mpi=pmi2 sets PMI_RANK, but not who is where on a node
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "7"}, Place(5, 7, 1, 2, "slurm")),
    ],
)
def test_a_rank_knows_its_place(environ: dict[str, str], place: Place) -> None:
    assert place_from_environment(environ) == place


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({**TORCH, "RANK": "first"}, r"What torchrun says in RANK, .* invalid literal"),
        ({**TORCH, "RANK": "4"}, r"RANK=4 and WORLD_SIZE=4 do not fit: ranks count from 0"),
        ({**SRUN, "SLURM_NODEID": "9"}, r"What slurm says in SLURM_PROCID, .*SLURM_STEP_TASKS_PER_NODE"),
    ],
)
def test_a_place_that_makes_no_sense_is_an_error(environ: dict[str, str], said: str) -> None:
    with pytest.raises(WorldError, match=said):
        place_from_environment(environ)
