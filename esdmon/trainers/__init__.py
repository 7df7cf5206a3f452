"""Parts of the trainer callbacks that do not depend on the trainer: `options`, `optimizers`, `base`."""
