"""Train: the loop, its tasks and parallel forms, and evaluation."""
