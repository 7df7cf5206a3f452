"""`Measuring`: from a spectrum to a record: its phase, its measures and their values for noise."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

from esdmon.isolation import Faults
from esdmon.plugins import Plugins
from esdmon.records import LayerReport
from esdmon.runtime.histogram import histogram
from esdmon.spectrum import Measure, Spectrum, classify
from esdmon.spectrum.measures import Quantity
from esdmon.spectrum.zhang2026 import shape_of


@final
class Measuring:
    """Compute the records of readings.

    Args:
        measures: computed for each spectrum.
        plugins: name the owners of measures.
        faults: counts measures that fail.
        follows: whether a matrix is read again and again, so that two readings can be compared.
    """

    def __init__(self, measures: Sequence[Measure], plugins: Plugins, faults: Faults, *, follows: bool) -> None:
        self._measures = [
            _Owned(measure, plugins.label("measure", measure.name), plugins.is_foreign("measure", measure.name))
            for measure in measures
        ]
        self._faults = faults
        self._follows = follows
        self.needs = frozenset(measure.needs for measure in measures)
        """What spectra must hold besides eigenvalues."""
        self.names = tuple(measure.name for measure in measures)
        """Names of the measures."""

    def record(self, begun: LayerReport, spectrum: Spectrum) -> LayerReport:
        """Return the record of a reading that was begun and has given a spectrum."""
        phase, elements = classify(spectrum), spectrum.elements
        values, nulls = {}, {}
        for owned in self._measures:
            measure = owned.measure
            if measure.applies is not None and not measure.applies(spectrum):
                continue
            if measure.between_readings and not self._follows:
                continue
            values[measure.name] = self._take(owned, measure.compute, spectrum, begun.step)
            if measure.null is not None and not spectrum.is_product:  # nulls are those of one random matrix
                nulls[measure.name] = self._take(owned, measure.null, spectrum, begun.step)
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
            phase=phase.phase,
            phase_confidence=phase.confidence,
            explanation=phase.explanation,
            alpha_is_meaningful=phase.alpha_is_meaningful,
            over_regularized=phase.over_regularized,
            measures=values,
            nulls=nulls,
            esd=histogram(spectrum),
            spectral_shape=shape_of(spectrum),
        )

    def _take(self, owned: "_Owned", quantity: Quantity, spectrum: Spectrum, step: int) -> float:
        if not self._faults.disabled(owned.label):
            with self._faults.isolated(owned.label, step, is_timed=owned.is_foreign):
                return float(quantity(spectrum))
        return math.nan


class _Owned(NamedTuple):
    measure: Measure
    label: str
    """Its name in messages."""
    is_foreign: bool
    """Whether it comes from a plugin."""
