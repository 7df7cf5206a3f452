"""Define `Computing`, which computes the numbers of a reading from a weight, here or in a worker process."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import final

from esdmon.runtime.reading.measuring import Measuring
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.workers.job import WorkerJob
from esdmon.runtime.workers.measured import Measured, measure
from esdmon.spectrum import Spectrum
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.recent_laws import RecentLaws
from esdmon.weights import Matrix, check_precision, export, read_spectrum


@final
class Computing:
    """Compute spectra, and keep the data of each matrix that its next reading uses.

    Args:
        measuring: determines the optional parts of spectra, and the measures that a worker process computes.
        options: precision and solver, and the processes that compute instead of this one if possible.

    Raises:
        InputError: for an unknown precision.
    """

    def __init__(self, measuring: Measuring, options: ReadingOptions) -> None:
        self._measuring = measuring
        self._precision = check_precision(options.precision)
        self._solver = options.solver
        self._processes = options.processes
        self._laws: defaultdict[str, RecentLaws] = defaultdict(RecentLaws)
        self._directions: dict[str, Floats] = {}
        self.reads_directions = "directions" in measuring.needs
        """True if the reference weight of a matrix is read too."""

    def forget_laws(self) -> None:
        """Discard the cached laws of noise, as a run does that is resumed here."""
        self._laws.clear()

    def forget_directions(self) -> None:
        """Discard the directions of the last readings."""
        self._directions.clear()

    def measure(self, matrix: Matrix, kind: str) -> Measured:
        """Compute and return the numbers of a reading of a weight.

        Args:
            matrix: the handle on it.
            kind: kind of layer.

        Raises:
            UnreadableError: for a weight without a spectrum.
            WorkerError: if the worker process has ended.
        """
        measured = self._measure_elsewhere(matrix, kind)
        if measured is None:
            return measure(self._spectrum(matrix, kind, self._precision))
        self._keep(matrix.name, measured.spectrum)
        return measured

    def solve(self, matrix: Matrix, kind: str) -> Callable[[], Measured]:
        """Compute the spectrum of a weight on its device now, in float64; return a function that computes the rest.

        Args:
            matrix: the handle on it.
            kind: kind of layer.

        Raises:
            UnreadableError: for a weight without a spectrum.
        """
        return partial(measure, self._spectrum(matrix, kind, "exact"))

    def _spectrum(self, matrix: Matrix, kind: str, precision: str) -> Spectrum:
        spectrum = read_spectrum(
            matrix,
            precision=precision,
            kind=kind,
            also=self._measuring.needs,
            solver=self._solver,
            laws=self._laws[matrix.name],
            last_directions=self._directions.get(matrix.name),
        )
        self._keep(matrix.name, spectrum)
        return spectrum

    def _keep(self, name: str, spectrum: Spectrum) -> None:
        if spectrum.directions is not None:
            self._directions[name] = spectrum.directions

    def _measure_elsewhere(self, matrix: Matrix, kind: str) -> Measured | None:
        """Let a worker process compute; return None if there is none."""
        if self._processes is None or not self._processes.are_usable:
            return None
        laws, last = self._laws[matrix.name], self._directions.get(matrix.name)
        exported = export(matrix, precision=self._precision, kind=kind, also=self._measuring.needs)
        directions = None if exported.directions is None else (*exported.directions, last)
        job = WorkerJob(exported.weight, laws, directions, self._measuring.built_in, self._measuring.follows)
        outcome = self._processes.run(job, exported.stack)
        if outcome is None:
            return None
        if isinstance(outcome.measured, Exception):
            raise outcome.measured
        if self._laws.get(matrix.name) is laws:  # otherwise they were discarded meanwhile
            self._laws[matrix.name] = outcome.laws
        return outcome.measured
