"""Read the matrices of a model: compute spectrum, measures and phase of each, and return them as a `LayerReport`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import final

from torch.optim import Optimizer

from esdmon.isolation import Faults
from esdmon.plugins import Plugins
from esdmon.records import Coverage, LayerReport, Report, Screened
from esdmon.records.adapters import beside_base
from esdmon.records.serialization import Plain
from esdmon.runtime.reading.computing import Computing
from esdmon.runtime.reading.gpu_solver import GpuSolver
from esdmon.runtime.reading.held_parameters import HeldParameters
from esdmon.runtime.reading.local_parts import LocalParts
from esdmon.runtime.reading.measuring import Measuring
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.records import ReadingRecords
from esdmon.runtime.reading.watched_model import WatchedModel
from esdmon.runtime.workers.source import Ratio, unknown
from esdmon.schedule.step_sample import StepSample
from esdmon.weights import (
    Drift,
    Matrix,
    Model,
    Screener,
    StepSampler,
    TrainingViews,
    Transfers,
    discover,
    snapshot,
)


@final
class Reader:
    """Read the matrices of one model at any step; keep samples of the weights, to measure how far they have moved.

    Args:
        model: a module, or a mapping of names to tensors.
        plugins: extract matrices of unknown modules, and name the owners of measures.
        options: what is read, and how.
        optimizers: the optimizers whose parameters are recorded.
        faults: counts readings and measures that fail; None for a model that is read once.
        drift: measures how far weights have moved; None for a model that is read once.
        transfers: copy tensors from an accelerator to the CPU.

    Raises:
        InputError: for a model that cannot be read, or without matrices.
    """

    def __init__(
        self,
        model: Model,
        plugins: Plugins,
        options: ReadingOptions,
        *,
        optimizers: Sequence[Optimizer] = (),
        faults: Faults | None = None,
        drift: Drift | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        self._views = TrainingViews(optimizers)
        self.model = WatchedModel(
            model,
            partial(
                discover,
                model,
                selection=options.selection,
                reference=options.reference,
                extractor=plugins.extract,
                materializer=plugins.materialize,
                views=None if drift is None else self._views.of,
                kept={},
            ),
        )
        self.held = HeldParameters(optimizers)
        self._faults = faults or Faults(during="reading")
        self._measuring = Measuring(options.measures, plugins, self._faults, follows=drift is not None)
        self._computing = Computing(self._measuring, options)
        self.transfers = transfers or Transfers()
        """Copy tensors from an accelerator."""
        self._drift = drift
        self.steps = StepSampler(self.transfers)
        """Samples the weights around single steps."""
        self._screener = Screener(self.transfers)
        self._records = ReadingRecords(self.model, self.held, self.steps, self._measuring, self._faults)
        self.parts = LocalParts(self.model, self.transfers)
        """The parts that this rank holds of a model that is sharded over the ranks of a job."""
        self.gpu = GpuSolver(self.transfers, self._faults)
        self._adapt()
        for name in self.model.matrices:
            if self.is_trainable(name):
                self.mark(name)  # so that the first reading knows how far a weight has moved from its start
        self.steps.watch(self.model.matrices.values())  # and at each step how far away it is

    @property
    def coverage(self) -> Coverage:
        """Return how much of the model is read."""
        return self.model.coverage

    @property
    def measures(self) -> tuple[str, ...]:
        """Return the names of the measures."""
        return self._measuring.names

    @property
    def needs_more(self) -> bool:
        """Return whether a measure needs more than eigenvalues: vectors, or spectra of other matrices."""
        return any(self._measuring.needs)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Return the matrices that are read, in the model's order."""
        return tuple(self.model.matrices.values())

    @property
    def strict(self) -> bool:
        """Return whether errors are raised."""
        return self._faults.strict

    def synchronizer(self) -> Callable[[], None]:
        """Return a function that synchronises the accelerators that hold weights."""
        return self.model.synchronizer()

    @property
    def is_idle(self) -> bool:
        """Return whether no copy from an accelerator is under way."""
        return self.transfers.is_idle

    def advance(self, *, wait: bool = False) -> None:
        """Check which copies have arrived from an accelerator; with `wait` wait for all of them."""
        self.transfers.advance(wait=wait)

    def refresh(self) -> bool:
        """Find the matrices again if the model has other parameters than before; return whether they have changed.

        Raises:
            InputError: if there is nothing left to read; the matrices are then unchanged.
        """
        self.held.refresh()
        has_changed = self.model.refresh()
        if has_changed:
            self._adapt()
            self._screener.keep(self.model.matrices)
            self._computing.forget_laws()
            self._computing.forget_directions()
        self.steps.watch(self.model.matrices.values())
        return has_changed

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""
        return self.model.nominal()

    def seconds_on_device(self) -> Mapping[str, float]:
        """Return the same where a GPU computes the eigenvalues, of the matrices for which that may pay."""
        return self.gpu.seconds

    def solvable(self) -> frozenset[str]:
        """Return the matrices of `seconds_on_device` that a GPU can solve now: they are on it, and it has memory."""
        return self.gpu.solvable()

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix, as of its last reading; 0 for one that cannot be read."""
        return self.model.size(name)

    def n_elements(self, name: str) -> int:
        """Return the number of elements of a matrix; 0 for one that cannot be read, or is another rank's."""
        return self.model.n_elements(name)

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient."""
        return self.model.is_trainable(name)

    def drifts(self, names: Iterable[str]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since it was last marked; NaN where that is not known."""
        return {} if self._drift is None else self._drift.peek(self.model.matrices[name] for name in names)

    def mark(self, name: str) -> Ratio:
        """Make the current weight the new baseline, and return the function that returns ‖ΔW‖/‖W‖ since the last."""
        with suppress(Exception):  # the reading that follows gives the reason
            self._views.mark(name)
            if self._drift is not None:
                return self._drift.update(self.model.matrices[name])
        return unknown

    def screen(self, name: str, step: int) -> float | None:
        """Begin to compute the norms of a matrix; see `Screener.screen`."""
        return self._screener.screen(self.model.matrices[name], step)

    def screened(self) -> list[Screened]:
        """Return finished screenings since the last call."""
        return self._screener.take()

    def last_step(self, name: str) -> StepSample:
        """Return the last sample of a single step of a matrix; its values are NaN if there is none."""
        return self.steps.last(name)

    def report(self, step: int, layers: Iterable[LayerReport], seconds: float) -> Report:
        """Return the report of a reading of all matrices, in the model's order."""
        read = {layer.name: layer for layer in layers}
        beside = tuple(beside_base(read[name], read) for name in self.model.matrices)
        return Report(step, beside, self.model.coverage_of(beside), seconds)

    def read_one(self, name: str, step: int) -> LayerReport:
        """Read one matrix."""
        return self.begin(name, step, moved=self.mark(name))()

    def begin(self, name: str, step: int, *, moved: Ratio = unknown, copy: bool = False) -> Callable[[], LayerReport]:
        """Begin a reading at its step, and return the function that finishes it and returns the record.

        Args:
            name: name of the matrix.
            step: optimizer steps taken.
            moved: what `mark` returned.
            copy: copy the weight, so that the reading may be finished later, and in another thread.
        """
        matrix, with_reference = self.model.matrices[name], self._computing.reads_directions

        def prepare(begun: LayerReport) -> Callable[[], LayerReport]:
            source = snapshot(matrix, self.transfers, with_reference=with_reference) if copy else matrix
            return partial(self._records.finish, partial(self._computing.measure, source, begun.kind), begun, moved)

        return self._records.begin(matrix, step, prepare)

    def solve(self, name: str, step: int, *, moved: Ratio = unknown) -> Callable[[], LayerReport] | None:
        """Compute the eigenvalues of a matrix on its GPU, and return the function that finishes the reading.

        Args:
            name: name of the matrix.
            step: optimizer steps taken.
            moved: what `mark` returned.

        Returns:
            None if the GPU fails.
        """
        matrix = self.model.matrices[name]

        def prepare(begun: LayerReport) -> Callable[[], LayerReport] | None:
            found = self.gpu.solve(name, step, partial(self._computing.solve, matrix, begun.kind))
            return None if found is None else partial(self._records.finish, found, begun, moved)

        return self._records.begin(matrix, step, prepare)

    def state_dict(self) -> Plain:
        """Return the samples from which is measured how far weights have moved."""
        self._computing.forget_laws()  # so that this run and a resumed one continue equally
        return {} if self._drift is None else self._without_parts(self._drift.state_dict())

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        if self._drift is None:
            return lambda: None
        return partial(self._continue_from, self._drift.prepare(self._without_parts(state)))

    def _continue_from(self, drift: Callable[[], None]) -> None:
        drift()
        self.steps.watch(self.model.matrices.values())  # before their samples are restored
        self._views.clear()
        self._screener.forget()
        self._computing.forget_directions()

    def _without_parts(self, samples: Plain) -> Plain:
        """Return the samples of whole weights: of a sharded one, another rank or size of a job has other elements."""
        matrices = self.model.matrices
        return {name: kept for name, kept in samples.items() if name not in matrices or not matrices[name].shards}

    def _adapt(self) -> None:
        """Update optimizer parameters, GPU solver and samples for the current matrices."""
        self.held.take_up(self.model.matrices.values())
        # Vectors and other spectra take a CPU long, in the hook.
        self.gpu.keep({} if self.needs_more else self.model.matrices)
        if self._drift is not None:
            self._drift.resize_samples(len(self.model.matrices))
