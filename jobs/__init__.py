"""The jobs: one thin file per thing that can be run on a cluster."""
