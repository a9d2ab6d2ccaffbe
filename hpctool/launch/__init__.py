"""Launch: compose, check, submit and run jobs; inline, local and on Slurm."""
