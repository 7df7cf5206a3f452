"""Reading a model: its matrices to spectra, their spectra to measures and phases, all of it to a `Report`.

Named so, and not `analyze`, because a submodule would take the place of the function `esdmon.analyze`.
"""

import logging
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import final

from torch.optim import Optimizer

from esdmon.errors import InputError, as_list, nearest
from esdmon.faults import Faults, describe
from esdmon.plugins import Plugins
from esdmon.records import LayerReport, Report
from esdmon.spectrum import Measure, Spectrum, classify
from esdmon.spectrum.measures import Quantity
from esdmon.state import Plain, layer_from, to_plain
from esdmon.weights import (
    MIN_EIGENVALUES,
    Drift,
    Matrix,
    Model,
    Selection,
    Solver,
    UnreadableError,
    check_precision,
    discover,
    open_checkpoint,
    read_spectrum,
    solve_lapack,
    solve_torch,
)

_log = logging.getLogger("esdmon")


def analyze(
    model: Model | str | os.PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_eigenvalues: int = MIN_EIGENVALUES,
    max_eigenvalues: int | None = None,
    reference: Model | str | os.PathLike[str] | None = None,
    measures: str | Sequence[str] = "default",
    precision: str = "auto",
    plugins: Iterable[object] = (),
) -> Report:
    """Read every weight matrix of a model once.

    Args:
        model: a module, a mapping of names to tensors (2-D: linear, 4-D: convolution), or the path of a checkpoint,
            which is read tensor by tensor: a `.pt`, `.pth`, `.ckpt`, `.bin` or `.safetensors` file, a folder of Hugging
            Face with one or more of those, or one of torch's distributed checkpoints.
        layers: fnmatch patterns on the names of matrices; None for all but embeddings, output heads and routers, which
            are read where a pattern names them, and details such as `*/head.3`.
        exclude: patterns of those to leave out.
        min_eigenvalues: matrices with fewer, over all slices, are left out.
        max_eigenvalues: matrices with more are left out: what costs the most.
        reference: another state of the same model, in any of the forms above: W − W₀ is read instead of W.
        measures: "default", "all" (with those that need eigenvectors or a shuffled copy), or names of measures.
        precision: "auto" (float32 where no verdict depends on it) or "exact" (float64).
        plugins: modules or objects with hooks, besides those that are installed.

    Returns:
        A `Report`: `print(report)` is a table, `report["fc1"].phase` a phase, `report.to_records()` JSON.

    Raises:
        InputError: for a model without matrices, a pattern that matches none, an unknown measure or precision, a
            checkpoint that cannot be read.

    >>> import torch
    >>> report = analyze(torch.nn.Sequential(torch.nn.Linear(256, 128)))
    >>> report["0"].phase.value
    'random-like'
    """
    selection = Selection(layers, exclude, min_eigenvalues, max_eigenvalues)
    reader = Reader(
        model,
        Plugins(plugins),
        selection=selection,
        reference=reference,
        measures=measures,
        precision=precision,
        solver=solve_lapack,
    )
    return reader.read(step=0)


@final
class Reader:
    """Reads the matrices of one model, step after step, and remembers what it needs to tell how they moved."""

    def __init__(
        self,
        model: Model | str | os.PathLike[str],
        plugins: Plugins,
        *,
        selection: Selection | None = None,
        reference: Model | str | os.PathLike[str] | None = None,
        measures: str | Sequence[str] = "default",
        precision: str = "auto",
        optimizer: Optimizer | None = None,
        faults: Faults | None = None,
        drift: Drift | None = None,
        solver: Solver = solve_torch,
    ) -> None:
        self._measures = _choose(measures, plugins.measures)
        self._needs = frozenset(measure.needs for measure in self._measures)
        self._precision = check_precision(precision)
        self._solver = solver
        watched = discover(
            _opened(model),
            selection=selection,
            reference=None if reference is None else _opened(reference),
            extractor=plugins.extract,
        )
        self.matrices = watched.matrices
        """What is read, in the model's order."""
        self.coverage = watched.coverage
        self._optimizer = optimizer
        self._faults = faults or Faults()
        self._drift = drift
        self._frozen: dict[str, LayerReport] = {}

    @property
    def any_in_optimizer(self) -> bool:
        """Whether the optimizer holds at least one of the matrices; True where there is no optimizer."""
        held = None if self._optimizer is None else _held_by(self._optimizer)
        return held is None or any(_is_held(matrix, held) for matrix in self.matrices)

    def read(self, step: int) -> Report:
        """All matrices as they are now. Never raises on a weight: what cannot be read has a status and a reason."""
        start = time.perf_counter()
        held = None if self._optimizer is None else _held_by(self._optimizer)
        layers = tuple(self.read_one(matrix, step, held) for matrix in self.matrices)
        return Report(step, layers, self.coverage, time.perf_counter() - start)

    def read_one(self, matrix: Matrix, step: int, held: set[int] | None = None) -> LayerReport:
        """One of `matrices`; `held` are the ids of the parameters in the optimizer, None where there is none."""
        try:
            moved = math.nan if self._drift is None else self._drift.update(matrix)
            trainable = any(parameter.requires_grad for parameter in matrix.parameters())
            frozen = self._frozen.get(matrix.name)
            if frozen is not None and not trainable and moved == 0:
                return replace(frozen, emitted_step=step, update_ratio=0.0)
            spectrum = read_spectrum(matrix, precision=self._precision, also=self._needs, solver=self._solver)
            report = replace(
                self._spectral_report(matrix.name, spectrum, step),
                aliases=matrix.aliases,
                n_parameters=math.prod(matrix.stack_shape()),
                trainable=trainable,
                in_optimizer=None if held is None else _is_held(matrix, held),
                update_ratio=moved,
            )
        except UnreadableError as fault:
            return LayerReport(matrix.name, fault.status, step, fault.reason, matrix.view, matrix.aliases)
        except Exception as error:
            if self._faults.strict:
                raise
            _log.debug("reading %s failed", matrix.name, exc_info=True)
            return LayerReport(matrix.name, "failed", step, describe(error), matrix.view, matrix.aliases)
        if not report.trainable:
            self._frozen[matrix.name] = report
        return report

    def state_dict(self) -> Plain:
        """The samples by which it is told how far weights have moved, and what was read of those that are frozen."""
        drift = {} if self._drift is None else self._drift.state_dict()
        return {"drift": drift, "frozen": {name: to_plain(layer) for name, layer in self._frozen.items()}}

    def load_state_dict(self, state: Plain) -> None:
        """Go on from `state_dict()`: a frozen weight that is still the same is not read again."""
        if self._drift is not None:
            self._drift.load_state_dict(state["drift"])
        self._frozen = {name: layer_from(plain) for name, plain in state["frozen"].items()}

    def _spectral_report(self, name: str, spectrum: Spectrum, step: int) -> LayerReport:
        phase = classify(spectrum)
        values, nulls = {}, {}
        for measure in self._measures:
            values[measure.name] = self._take(measure.name, measure.compute, spectrum, step)
            if measure.null is not None and spectrum.view != "lora-delta":  # a product of two is no such noise
                nulls[measure.name] = self._take(measure.name, measure.null, spectrum, step)
        return LayerReport(
            name=name,
            status="ok",
            step=step,
            view=spectrum.view,
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
        )

    def _take(self, name: str, quantity: Quantity, spectrum: Spectrum, step: int) -> float:
        who = f"measure {name}"
        if not self._faults.disabled(who):
            with self._faults.isolated(who, step):
                return float(quantity(spectrum))
        return math.nan


def _opened(model: Model | str | os.PathLike[str]) -> Model:
    return open_checkpoint(model) if isinstance(model, str | os.PathLike) else model


def _choose(measures: str | Sequence[str], known: Mapping[str, Measure]) -> tuple[Measure, ...]:
    if measures == "all":
        return tuple(known.values())
    if measures == "default":
        return tuple(measure for measure in known.values() if not measure.needs)
    names = as_list("measures", measures, "names of measures")
    for name in names:
        if name not in known:
            hint = nearest(str(name), known) or f" There are {', '.join(known)}."
            msg = f"measures={name!r} is no measure.{hint}"
            raise InputError(msg)
    return tuple(known[name] for name in names)


def _is_held(matrix: Matrix, held: set[int]) -> bool:
    return any(id(parameter) in held for parameter in matrix.parameters())


def _held_by(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
