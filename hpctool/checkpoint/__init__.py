"""Checkpoint: state to disk and back, committed through the run's ledger."""
