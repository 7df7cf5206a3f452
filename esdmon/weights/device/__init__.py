"""Compute on the device of a weight: copies, precision, eigenvalues, samples of its elements."""
