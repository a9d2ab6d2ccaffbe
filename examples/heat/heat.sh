#!/bin/bash
# The plate on $RANKS ranks of this machine: hpctool run script=heat.sh cluster=local, or hpctool chaos run script=heat.sh
exec mpirun -n "${RANKS:-3}" --oversubscribe --bind-to none python -m mpi4py "$(dirname "$0")/heat.py" "$@"
