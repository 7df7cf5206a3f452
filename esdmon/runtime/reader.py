"""Read the matrices of a model: weight to spectrum, spectrum to measures and phase, all to a `LayerReport`."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import nn
from torch.optim import Optimizer

from esdmon.errors import InputError
from esdmon.isolation import Faults, describe
from esdmon.plugins import Plugins
from esdmon.records import Coverage, LayerReport, Report
from esdmon.records.serialization import Plain
from esdmon.runtime.failed_readings import FailingReadings
from esdmon.runtime.held import HeldParameters
from esdmon.runtime.histogram import histogram
from esdmon.spectrum import Measure, Spectrum, classify
from esdmon.spectrum.measures import Quantity
from esdmon.weights import (
    Drift,
    Matrix,
    Model,
    Selection,
    Solver,
    UnreadableError,
    Watched,
    check_precision,
    discover,
    nominal_seconds,
    open_checkpoint,
    read_spectrum,
    snapshot,
    solve_torch,
    structure,
    unread,
)

_log = logging.getLogger("esdmon")
_TRIES = 3  # more, for what fails while weights are looked for; our choice


@final
class Reader:
    """Read the matrices of one model at any step; keep samples of the weights, to measure how far they have moved.

    Args:
        model: a module, a mapping of names to tensors, or the path of a checkpoint.
        plugins: extract matrices of unknown modules, and name the owners of measures.
        measures: computed for each spectrum.
        selection: which matrices are read; None for the default.
        reference: another state of the model: the difference from it is read.
        precision: "auto" or "exact".
        optimizers: asked which parameters they hold.
        faults: counts readings and measures that fail.
        drift: measures how far weights have moved; None for a model that is read once.
        solver: computes eigenvalues.

    Raises:
        InputError: for a model or checkpoint that cannot be read, or without matrices.
    """

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        plugins: Plugins,
        *,
        measures: Sequence[Measure],
        selection: Selection | None = None,
        reference: Model | str | os.PathLike[str] | None = None,
        precision: str = "auto",
        optimizers: Sequence[Optimizer] = (),
        faults: Faults | None = None,
        drift: Drift | None = None,
        solver: Solver = solve_torch,
    ) -> None:
        self._measures = tuple(measures)
        self._plugins = plugins
        self._needs = frozenset(measure.needs for measure in self._measures)
        self._precision = check_precision(precision)
        self._solver = solver
        self._model = _opened(model)
        self._discover = partial(
            discover,
            self._model,
            selection=selection,
            reference=None if reference is None else _opened(reference),
            extractor=plugins.extract,
            materializer=plugins.materialize,
            kept={},
        )
        self._held = HeldParameters(optimizers)
        self._faults = faults or Faults()
        self._drift = drift
        self._failing = FailingReadings(self._faults)
        self._structure: tuple[object, ...] = ()
        self._has_warned = False
        self._unread: list[str] = []
        self._tries = 0
        self._take_up(self._discover())
        for name in self._matrices:
            if self.is_trainable(name):
                self.mark(name)  # so that the first reading knows how far a weight has moved from its start

    @property
    def coverage(self) -> Coverage:
        """Return how much of the model is read."""
        return self._watched.coverage

    @property
    def measures(self) -> tuple[str, ...]:
        """Return the names of the measures."""
        return tuple(measure.name for measure in self._measures)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Return the matrices that are read, in the model's order."""
        return tuple(self._matrices.values())

    @property
    def any_in_optimizer(self) -> bool:
        """Return whether the optimizers hold any of the matrices; True where that is not known."""
        known = [held for matrix in self.matrices if (held := self._held.holds(matrix)) is not None]
        return not known or any(known)

    @property
    def on_accelerator(self) -> bool:
        """Return whether any weight is on an accelerator."""
        return bool(self._accelerators())

    def settle(self) -> None:
        """Synchronise the accelerators, so that pending training kernels are not counted as monitoring cost."""
        for device in self._accelerators():
            torch.accelerator.synchronize(device)

    def refresh(self) -> bool:
        """Look for matrices again if the model has other parameters than before: at the start of each due step.

        Returns:
            Whether the matrices have changed.

        Raises:
            InputError: where there is nothing left to read; the matrices stay as they were.
        """
        self._held.refresh()
        if not isinstance(self._model, nn.Module):
            return False
        now = structure(self._model)
        if now == self._structure:
            return self._retry()
        try:
            self._take_up(self._discover())
        except InputError:  # the same as long as the model is the same
            self._structure = now
            raise
        level, self._has_warned = (logging.DEBUG if self._has_warned else logging.WARNING), True
        _log.log(level, "esdmon: the parameters of the model have changed: %s", self.coverage)
        return True

    def _retry(self) -> bool:
        """Try again, a few times, what has failed while matrices were looked for: the failure may be temporary."""
        if not self._watched.failures or self._tries >= _TRIES:
            return False
        tries, before = self._tries + 1, self._watched.failures
        self._take_up(self._discover())
        self._tries = tries
        return self._watched.failures != before

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""
        return {name: nominal_seconds(matrix) for name, matrix in self._matrices.items()}

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix; 0 for one that does not exist any more."""
        matrix = self._matrices[name]
        with suppress(Exception):  # the reading says why
            return math.prod(matrix.stack_shape()) * max(4, *(p.element_size() for p in matrix.parameters()))
        return 0

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient."""
        with suppress(Exception):  # one that does not exist any more
            return any(parameter.requires_grad for parameter in self._matrices[name].parameters())
        return False

    def look(self, names: Iterable[str]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since it was last marked; NaN where that is not known."""
        return {} if self._drift is None else self._drift.look(self._matrices[name] for name in names)

    def mark(self, name: str) -> float:
        """Return ‖ΔW‖/‖W‖ since the last call, and make the current weight the new baseline."""
        try:
            return math.nan if self._drift is None else self._drift.update(self._matrices[name])
        except Exception:  # noqa: BLE001 -- the reading that follows gives the reason
            return math.nan

    def fingerprint(self) -> str:
        """Return a text that is equal on ranks that hold the same weights."""
        return "" if self._drift is None else self._drift.fingerprint(self.matrices)

    def read(self, step: int) -> Report:
        """Read all matrices. A weight that cannot be read raises nothing: its layer has a status and a reason."""
        start = time.perf_counter()
        layers = tuple(self.read_one(name, step) for name in self._matrices)
        return Report(step, layers, self.coverage, time.perf_counter() - start)

    def read_one(self, name: str, step: int) -> LayerReport:
        """Read one matrix."""
        return self.begin(name, step, moved=self.mark(name))()

    def begin(self, name: str, step: int, *, moved: float = math.nan, copy: bool = False) -> Callable[[], LayerReport]:
        """Begin a reading at its step, and return the function that finishes it and returns the record.

        Args:
            name: of the matrix.
            step: optimizer steps taken.
            moved: what `mark` returned.
            copy: copy the weight, so that the reading may be finished later, and in another thread.
        """
        matrix = self._matrices[name]
        begun = LayerReport(
            name, "failed", step, "not finished", view=matrix.view, aliases=matrix.aliases, update_ratio=moved
        )
        try:
            begun = replace(
                begun,
                n_parameters=math.prod(matrix.stack_shape()),
                trainable=self.is_trainable(name),
                in_optimizer=self._held.holds(matrix),
            )
            source = snapshot(matrix) if copy else matrix
        except Exception as error:  # noqa: BLE001 -- reported by the function that finishes it
            return partial(self._not_read, begun, error)
        return partial(self._finish, source, begun)

    def state_dict(self) -> Plain:
        """Return the samples from which is measured how far weights have moved."""
        return {} if self._drift is None else self._drift.state_dict()

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return the function that continues from it."""
        return (lambda: None) if self._drift is None else self._drift.prepare(state)

    def _take_up(self, watched: Watched) -> None:
        self._watched = watched
        self._matrices = {matrix.name: matrix for matrix in watched.matrices}
        self._structure = structure(self._model) if isinstance(self._model, nn.Module) else ()
        self._tries = 0
        self._log_unread(unread(watched))
        if self._drift is not None:
            self._drift.share_among(len(self._matrices))

    def _log_unread(self, sentences: list[str]) -> None:
        level = logging.WARNING if _is_first_rank() else logging.DEBUG
        for sentence in sentences:
            if sentence not in self._unread:
                _log.log(level, "esdmon: %s", sentence)
        self._unread = sentences

    def _accelerators(self) -> set[torch.device]:
        weights = self._model.parameters() if isinstance(self._model, nn.Module) else self._model.values()
        return {weight.device for weight in weights if weight.device.type not in ("cpu", "meta")}

    def _finish(self, matrix: Matrix, begun: LayerReport) -> LayerReport:
        try:
            spectrum = read_spectrum(matrix, precision=self._precision, also=self._needs, solver=self._solver)
            layer = self._spectral_report(begun, spectrum)
        except Exception as error:  # noqa: BLE001 -- reported in the record
            return self._not_read(begun, error)
        self._failing.worked(begun.name, begun.step)
        return layer

    def _not_read(self, begun: LayerReport, error: Exception) -> LayerReport:
        if isinstance(error, UnreadableError):
            self._failing.worked(begun.name, begun.step)
            return replace(begun, status=error.status, reason=error.reason)
        if self._faults.strict:
            raise error
        self._failing.failed(begun.name, begun.step, error)
        return replace(begun, reason=describe(error))

    def _spectral_report(self, begun: LayerReport, spectrum: Spectrum) -> LayerReport:
        phase = classify(spectrum)
        values, nulls = {}, {}
        for measure in self._measures:
            values[measure.name] = self._take(measure.name, measure.compute, spectrum, begun.step)
            if measure.null is not None and spectrum.view != "lora-delta":  # its null is that of one random matrix
                nulls[measure.name] = self._take(measure.name, measure.null, spectrum, begun.step)
        return replace(
            begun,
            status="ok",
            reason="",
            N=spectrum.n,
            M=spectrum.m,
            slices=spectrum.slices,
            dtype=spectrum.dtype,
            precision=spectrum.precision,
            phase=phase.phase,
            phase_confidence=phase.confidence,
            explanation=phase.explanation,
            alpha_is_meaningful=phase.alpha_is_meaningful,
            over_regularized=phase.over_regularized,
            measures=values,
            nulls=nulls,
            esd=histogram(spectrum),
        )

    def _take(self, name: str, quantity: Quantity, spectrum: Spectrum, step: int) -> float:
        who = self._plugins.who("measure", name)
        if not self._faults.disabled(who):
            with self._faults.isolated(who, step, is_timed=self._plugins.is_foreign("measure", name)):
                return float(quantity(spectrum))
        return math.nan


def _is_first_rank() -> bool:
    """Return whether this is rank 0 of its job, or alone: all ranks would log the same."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _opened(model: Model | str | os.PathLike[str]) -> Model:
    return open_checkpoint(model) if isinstance(model, str | os.PathLike) else model
