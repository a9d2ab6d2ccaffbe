"""Review: people look at what the model is unsure of, and their answers become the next version of the data."""
