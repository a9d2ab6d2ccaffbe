"""Sweeps that think: workers without a controller, which read a journal, decide, and train trials as runs."""
