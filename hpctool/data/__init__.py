"""Data: versioned datasets of HDF5 objects, and the order in which samples are read."""
