"""Define `Measuring`, which computes from a spectrum the phase, the measures and their nulls."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

from esdmon.isolation import Faults
from esdmon.plugins import Plugins
from esdmon.records import LayerReport
from esdmon.runtime.workers.measured import Measured, Of, quantities
from esdmon.spectrum import Measure, Spectrum
from esdmon.spectrum.measures import BUILT_IN_MEASURES, Quantity


@final
class Measuring:
    """Compute the records of readings.

    Args:
        measures: the measures that are computed for each spectrum.
        plugins: return the owners of measures.
        faults: counts measures that fail.
        follows: whether matrices are read repeatedly, so that two readings can be compared.
    """

    def __init__(self, measures: Sequence[Measure], plugins: Plugins, faults: Faults, *, follows: bool) -> None:
        self._measures = [
            _Owned(measure, plugins.label("measure", measure.name), plugins.is_foreign("measure", measure.name))
            for measure in measures
        ]
        self._faults = faults
        self.needs = frozenset(measure.needs for measure in measures)
        """The optional parts of spectra that the measures need."""
        self.names = tuple(measure.name for measure in measures)
        """Names of the measures."""
        self.built_in = tuple(measure.name for measure in measures if measure in BUILT_IN_MEASURES)
        """Names of the measures that any process of esdmon can compute."""
        self.follows = follows

    def record(self, begun: LayerReport, read: Measured) -> LayerReport:
        """Return the completed record of a reading; compute the measures that are not computed yet."""
        spectrum, phase, elements = read.spectrum, read.phase, read.spectrum.elements
        values: dict[Of, dict[str, float]] = {"weight": {}, "noise": {}}
        for owned in self._measures:
            name = owned.measure.name
            for of, quantity in quantities(owned.measure, spectrum, follows=self.follows):
                known = read.values.get((name, of))
                values[of][name] = self._take(owned, quantity, spectrum, begun.step) if known is None else known
        return replace(
            begun,
            status="ok",
            reason="",
            N=spectrum.n,
            M=spectrum.m,
            slices=spectrum.slices,
            dtype=spectrum.dtype,
            precision=spectrum.precision,
            dead_rows=0 if elements is None else elements.zero_rows,
            dead_columns=0 if elements is None else elements.zero_columns,
            dead_slices=0 if elements is None else elements.zero_slices,
            phase=phase.phase,
            phase_confidence=phase.confidence,
            explanation=phase.explanation,
            alpha_is_meaningful=phase.alpha_is_meaningful,
            over_regularized=phase.over_regularized,
            measures=values["weight"],
            nulls=values["noise"],
            esd=read.esd,
            spectral_shape=read.shape,
        )

    def _take(self, owned: "_Owned", quantity: Quantity, spectrum: Spectrum, step: int) -> float:
        if not self._faults.disabled(owned.label):
            with self._faults.isolated(owned.label, step, is_timed=owned.is_foreign):
                return float(quantity(spectrum))
        return math.nan


class _Owned(NamedTuple):
    measure: Measure
    label: str
    """The name of the measure in messages."""
    is_foreign: bool
    """True if the measure comes from a plugin."""
