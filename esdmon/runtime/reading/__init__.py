"""From a weight to the record of its reading: the one package of the runtime that knows tensors."""
