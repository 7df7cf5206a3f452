"""Define `DriftLog`: the distance that each matrix has moved since its last reading, on this rank or on others."""

import math
from collections.abc import Mapping
from typing import final

from esdmon.records import LayerReport
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.workers.source import Source
from esdmon.schedule.budget import Budget
from esdmon.schedule.priority import ReadPriority

_BATCH = 32  # matrices whose drift is measured before the credit is checked again
_FEW = 4  # matrices whose drift is measured even without credit
_SHARE = 0.5  # share of the credit that may go into measuring drift


@final
class DriftLog:
    """Measure the drift of matrices for their priority.

    Args:
        source: the matrices of this process.
        priority: records the drift.
        budget: limits how many are measured at a due step.
        job: the ranks of the job, which have their own matrices; None for a single process.
    """

    def __init__(self, source: Source, priority: ReadPriority, budget: Budget, job: DistributedJob | None) -> None:
        self._source = source
        self._priority = priority
        self._budget = budget
        self._job = job
        self._not_measured: set[str] = set()

    def is_here(self, name: str) -> bool:
        """Return whether this process can read a matrix alone, and knows it by this name."""
        return self.whole(name) == name

    def known(self) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since its last reading, as last measured."""
        return {name: self._priority.drift(name) for name in self._priority.names}

    def measure(self, step: int) -> None:
        """Measure how far matrices have moved: all if the credit allows, else those not measured for longest."""
        known = {name: self._local(name) for name in self._priority.to_measure()}
        names, credit = [name for name, local in known.items() if local], self._budget.credit
        count = _BATCH if credit > 0 else _FEW
        while names:
            drifts = self._source.drifts(known[name] for name in names[:count])
            for name in names[:count]:
                local = known[name]
                drift = drifts.get(local)
                if drift is None:  # on an accelerator it is known at the next due step
                    self._priority.expect(name, step)
                    self._not_measured.add(name)
                elif not math.isnan(drift) or self.is_here(name):  # otherwise the readings of other ranks contain it
                    self._priority.drifted(name, step, drift, trainable=self._source.is_trainable(local))
            names = names[count:]
            if self._budget.credit < (1 - _SHARE) * credit or credit <= 0:
                break

    def learn(self, read: Mapping[str, LayerReport], latest: Mapping[str, LayerReport]) -> None:
        """Record the drift rate of matrices that could not be measured at a due step.

        Args:
            read: readings of a due step.
            latest: the readings before them.
        """
        for name, layer in read.items():
            before = latest.get(name)
            if before is not None and (name in self._not_measured or not self.is_here(name)):
                self._not_measured.discard(name)
                steps = layer.step - before.step
                self._priority.moved(name, layer.update_ratio, steps, trainable=layer.trainable)

    def whole(self, name: str) -> str:
        """Return the name in this process's model of a matrix that it holds completely; empty for any other matrix."""
        return name if self._job is None else self._job.names.whole(name)

    def _local(self, name: str) -> str:
        """Return the name of a matrix in this process's model; empty where it is of another rank's."""
        return name if self._job is None else self._job.names.local(name)
