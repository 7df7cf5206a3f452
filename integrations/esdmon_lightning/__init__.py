"""`SpectralMonitor` for the Trainer of Lightning: `Trainer(callbacks=[SpectralMonitor(every=200)])`."""

from esdmon_lightning.callback import SpectralMonitor as SpectralMonitor
