"""Run readings in the training's thread, in other threads, or in worker processes, on idle cores."""
