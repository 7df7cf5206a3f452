"""Read a state dict as the module would be read that it belongs to."""

from esdmon.weights.state.find import find_in_state as find_in_state
