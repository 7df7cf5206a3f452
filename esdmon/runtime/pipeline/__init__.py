"""Choose the matrices to read at a due step, and hold their readings until they are reported."""
