"""Serve: a server that batches by itself and keeps a journal, and the same answers for a whole dataset offline."""
