"""Watching a model in service: drift with effect sizes, accuracy without labels, and a report for people."""
