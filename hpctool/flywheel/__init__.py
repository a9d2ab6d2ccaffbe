"""Flywheel: the stages of the loop as one command that can be killed anywhere, and the gate before a promotion."""
