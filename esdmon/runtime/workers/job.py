"""Define the job of a worker process and its result, as plain values and arrays."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from esdmon.runtime.workers.measured import Measured, measure
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.decomposition import Weight, spectrum_of
from esdmon.spectrum.margins import Array
from esdmon.spectrum.preparation import prepare_array
from esdmon.spectrum.recent_laws import RecentLaws


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """A reading, without its array."""

    weight: Weight
    laws: RecentLaws
    """The laws of noise of this matrix from its last reading."""
    directions: tuple[Floats, Floats | None, Floats | None] | None
    """The arguments of `Spectrum.with_directions`."""
    measures: tuple[str, ...]
    """Names of built-in measures."""
    follows: bool
    """True if the matrix is read repeatedly; see `quantities`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a job."""

    measured: Measured | Exception
    laws: RecentLaws
    """The laws of the job, and the laws that this reading has added."""
    cpu_seconds: float = 0.0
    """CPU time of the process since its start."""


@dataclass(frozen=True, slots=True)
class Order:
    """A job whose array is in shared memory."""

    job: WorkerJob
    dtype: str
    shape: tuple[int, ...]

    def array_in(self, memory: Any) -> Array:
        """Return the array."""
        array: Array = np.frombuffer(memory, self.dtype, math.prod(self.shape)).reshape(self.shape)
        return array


def run(job: WorkerJob, stack: Array) -> Outcome:
    """Compute the spectrum of a stack of matrices, and the numbers of its record."""
    try:
        spectrum = spectrum_of(*prepare_array(stack, job.weight), job.laws)
        if job.directions is not None:
            spectrum = spectrum.with_directions(*job.directions)
        return Outcome(measure(spectrum, job.measures, follows=job.follows), job.laws)
    except Exception as error:  # noqa: BLE001 -- reported by the process that has sent the job
        return Outcome(error, job.laws)
