"""Find the matrices of a state dict, the same as in its module."""

from esdmon.weights.state.find import find_in_state as find_in_state
