"""`Measuring`: from a spectrum to a record: its phase, its measures and their values for noise."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import final

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
        self._measures = tuple(measures)
        self._plugins = plugins
        self._faults = faults
        self._follows = follows
        self.needs = frozenset(measure.needs for measure in self._measures)
        """What spectra must hold besides eigenvalues."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the measures."""
        return tuple(measure.name for measure in self._measures)

    def record(self, begun: LayerReport, spectrum: Spectrum) -> LayerReport:
        """Return the record of a reading that was begun and has given a spectrum."""
        phase, elements = classify(spectrum), spectrum.elements
        values, nulls = {}, {}
        for measure in self._measures:
            if measure.applies is not None and not measure.applies(spectrum):
                continue
            if measure.between_readings and not self._follows:
                continue
            values[measure.name] = self._take(measure.name, measure.compute, spectrum, begun.step)
            if measure.null is not None and not spectrum.is_product:  # nulls are those of one random matrix
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

    def _take(self, name: str, quantity: Quantity, spectrum: Spectrum, step: int) -> float:
        who = self._plugins.label("measure", name)
        if not self._faults.disabled(who):
            with self._faults.isolated(who, step, is_timed=self._plugins.is_foreign("measure", name)):
                return float(quantity(spectrum))
        return math.nan
