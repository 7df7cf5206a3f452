"""The common code of the callbacks for Trainers, independent of any Trainer.

`base` is the callback; `options` are its arguments, `sinks` opens sinks for the Trainer's loggers, `metrics` are the
numbers that other callbacks can monitor, and `optimizers` finds the torch optimizers in the Trainer's.
"""
