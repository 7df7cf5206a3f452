"""Turn a weight into the record of its reading. No other package of the runtime handles tensors."""
