"""Read the event files of TensorBoard by its own reader."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events_of(folder: str | Path) -> EventAccumulator:
    """Return all scalars and tensors, and samples of the rest, that TensorBoard finds in a folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator
