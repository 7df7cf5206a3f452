"""The common code of the callbacks for Trainers, independent of any Trainer.

`base` defines the callback, and `options` its arguments. `sinks` opens sinks for the Trainer's loggers, `metrics`
computes the numbers that other callbacks can monitor, and `optimizers` finds the torch optimizers inside the Trainer's.
"""
