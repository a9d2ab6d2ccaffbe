"""Sources: what can be read into a dataset."""
