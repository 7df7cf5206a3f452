"""Which matrices are read at a due step, and what becomes of the readings until they are reported."""
