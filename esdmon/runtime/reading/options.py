"""Define `ReadingOptions`: what is read of a model, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from esdmon.runtime.workers.processes import Processes
from esdmon.spectrum import Measure
from esdmon.weights import Model, Selection, Solver, solve_torch


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """What is read of a model, and how."""

    measures: Sequence[Measure]
    """The measures that are computed for each spectrum."""
    selection: Selection | None = None
    """Which matrices are read; None for the default."""
    reference: Model | None = None
    """Another state of the model: the difference from it is read."""
    precision: str = "auto"
    """"auto" or "exact"."""
    solver: Solver = solve_torch
    """Computes eigenvalues in this process."""
    processes: Processes | None = None
    """Finish the readings of copies; None for the calling thread."""
