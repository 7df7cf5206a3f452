"""Define `LatestReadings`: the last reading of each matrix, also of matrices of a saved run that are not found yet."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import final

from esdmon.records import LayerReport
from esdmon.records.adapters import beside_base
from esdmon.records.serialization import Plain, layer_from_plain, to_plain
from esdmon.runtime.pipeline.due_step import DueStep
from esdmon.schedule.priority import TOLERANCE


@final
class LatestReadings:
    """Keep the last reading of each matrix of the job.

    A run that is resumed knows its own matrices at once, and those of other ranks when these have announced them.
    Readings of the latter are awaited until then: a report without them would end the alerts of their layers.
    """

    def __init__(self) -> None:
        self.read: dict[str, LayerReport] = {}
        """Readings of the matrices that are listed now."""
        self._awaited: dict[str, LayerReport] = {}
        self._loaded: dict[str, LayerReport] = {}

    def state_dict(self) -> Plain:
        """Return the readings as plain data."""
        return {name: to_plain(layer) for name, layer in (self._awaited | self.read).items()}

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return a function that restores these readings as awaited."""
        saved = {name: layer_from_plain(layer) for name, layer in state.items()}

        def restore() -> None:
            self.read, self._awaited, self._loaded = {}, dict(saved), dict(saved)

        return restore

    def take_loaded(self) -> Mapping[str, LayerReport]:
        """Return the readings of a state that was loaded since the last call."""
        loaded, self._loaded = self._loaded, {}
        return loaded

    def keep(self, names: Iterable[str], *, is_final: bool) -> dict[str, LayerReport]:
        """Keep the readings of existing matrices only, and return the awaited readings among them.

        Args:
            names: of all matrices that are listed.
            is_final: True if no rank will announce further matrices, so that no reading is awaited any more.
        """
        found = {name: self._awaited.pop(name) for name in names if name in self._awaited}
        kept = found | self.read
        self.read = {name: kept[name] for name in names if name in kept}
        if is_final:
            self._awaited.clear()
        return found

    def take(self, read: Mapping[str, LayerReport], names: Iterable[str]) -> None:
        """Store the readings of a due step, for existing matrices."""
        settled = {name: read[name].settle(self.read.get(name)) for name in names if name in read}
        self.read |= settled
        self.read |= {name: beside_base(layer, self.read) for name, layer in settled.items()}

    def as_of(self, due: DueStep, is_trainable: Callable[[str], bool]) -> Iterator[LayerReport]:
        """Yield the last reading of each matrix, with its drift and age at a due step."""
        for name, layer in self.read.items():
            if layer.step == due.step:
                yield layer
                continue
            drift = due.drift.get(name, math.nan)
            trainable = layer.trainable and is_trainable(name)
            yield replace(layer, emitted_step=due.step, trainable=trainable, drift=drift, unchanged=drift <= TOLERANCE)
        for layer in self._awaited.values():
            yield replace(layer, emitted_step=due.step, drift=math.nan, unchanged=False)
