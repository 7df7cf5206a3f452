"""Compute on the device of a weight: copies, precision, eigenvalues, how far it has moved."""
