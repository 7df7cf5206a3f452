"""`SpectralMonitor` for the Trainer of Hugging Face: `Trainer(..., callbacks=[SpectralMonitor(every=200)])`.

For a loop with Accelerate: `esdmon.watch(model, optimizer, sinks=tracker_sinks(accelerator))`.
"""

from esdmon_transformers.callback import SpectralMonitor as SpectralMonitor
from esdmon_transformers.callback import attach as attach
from esdmon_transformers.trackers import tracker_sinks as tracker_sinks
