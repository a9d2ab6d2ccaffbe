"""Chaos: a rehearsal of failure on a user's own job, here: straight, then broken, then compared to the bit."""
