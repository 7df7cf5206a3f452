"""A reading as plain values and arrays: what a worker process is given, and what it returns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from esdmon.runtime.measured import Measured, measure
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.decomposition import Facts, spectrum_of
from esdmon.spectrum.lapack import Array, ArrayStack
from esdmon.spectrum.recent_laws import RecentLaws
from esdmon.spectrum.scales import Scales

_ALIGNMENT = 64  # bytes: a line of the cache


@dataclass(frozen=True, slots=True)
class Job:
    """A reading, without its arrays."""

    facts: Facts
    scales: Scales | None
    laws: RecentLaws
    """Those of this matrix, as of its last reading."""
    directions: tuple[Floats, Floats | None, Floats | None] | None
    """The arguments of `Spectrum.with_directions`."""
    measures: tuple[str, ...]
    """Names of built-in measures."""
    follows: bool
    """As of `quantities`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job gave."""

    measured: Measured | Exception
    laws: RecentLaws
    """Those of the job, and what this reading has added to them."""
    cpu_seconds: float = 0.0
    """CPU time of the process since its start."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array lies in shared memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """In bytes."""

    def array_in(self, memory: Any) -> Array:
        """Return the array."""
        array: Array = np.frombuffer(memory, self.dtype, math.prod(self.shape), self.offset).reshape(self.shape)
        return array


@dataclass(frozen=True, slots=True)
class Order:
    """A job, and where its arrays are."""

    job: Job
    places: tuple[Place, ...]
    size: int
    """Bytes of the shared memory that they take."""


def order(job: Job, arrays: Mapping[str, Array]) -> Order:
    """Return a job with a place for each of its arrays, one behind the other."""
    places, size = [], 0
    for name, array in arrays.items():
        places.append(Place(name, array.dtype.name, array.shape, size))
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return Order(job, tuple(places), size)


def run(job: Job, arrays: Mapping[str, Array]) -> Outcome:
    """Compute the spectrum of the arrays, and what follows from it."""
    try:
        spectrum = spectrum_of(ArrayStack(arrays, job.scales), job.facts, job.laws)
        if job.directions is not None:
            spectrum = spectrum.with_directions(*job.directions)
        return Outcome(measure(spectrum, job.measures, follows=job.follows), job.laws)
    except Exception as error:  # noqa: BLE001 -- reported by the process that gave the job
        return Outcome(error, job.laws)
