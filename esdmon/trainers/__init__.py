"""What the callbacks for Trainers share, whichever Trainer it is.

`base` is the callback itself, without a host; `options` are its arguments, `sinks` opens the host's loggers, `metrics`
are the numbers that other callbacks may monitor, and `optimizers` looks into the host's optimizers.
"""
