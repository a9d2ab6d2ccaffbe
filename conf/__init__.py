"""The configuration that ships with hpctool: one primary file per job, and groups to choose from."""
