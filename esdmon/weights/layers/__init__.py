"""Find the matrices in each kind of module."""
