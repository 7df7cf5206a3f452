"""Compute all numbers of a record from a spectrum, in this process or in a worker process."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from esdmon.records import Esd
from esdmon.runtime.workers.histogram import histogram
from esdmon.spectrum import Measure, PhaseReading, Spectrum, classify
from esdmon.spectrum.measures import BUILT_IN_MEASURES, Quantity
from esdmon.spectrum.zhang2026 import shape_of

Of: TypeAlias = Literal["weight", "noise"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A spectrum with its phase, its shape, and the measures that are already computed."""

    spectrum: Spectrum
    phase: PhaseReading
    esd: Esd | None
    shape: tuple[float, ...]
    values: Mapping[tuple[str, Of], float]
    """The value of each measure, and its value for noise, by name."""


def measure(spectrum: Spectrum, names: Collection[str] = (), *, follows: bool = False) -> Measured:
    """Return all numbers of a spectrum.

    Args:
        spectrum: the spectrum of a weight.
        names: names of built-in measures. A measure that fails is omitted: the caller computes it again, and reports
            the failure.
        follows: see `quantities`.
    """
    phase = classify(spectrum)
    values: dict[tuple[str, Of], float] = {}
    for each in BUILT_IN_MEASURES:
        if each.name in names:
            for of, quantity in quantities(each, spectrum, follows=follows):
                with suppress(Exception):
                    values[each.name, of] = float(quantity(spectrum))
    return Measured(spectrum, phase, histogram(spectrum), shape_of(spectrum), values)


def quantities(measure: Measure, spectrum: Spectrum, *, follows: bool) -> Iterator[tuple[Of, Quantity]]:
    """Yield the value of a measure for a spectrum, or nothing if the spectrum has no such value.

    Args:
        measure: the measure.
        spectrum: the spectrum of a weight.
        follows: whether the matrix is read repeatedly, so that two readings can be compared.
    """
    if measure.applies is not None and not measure.applies(spectrum):
        return
    if measure.between_readings and not follows:
        return
    yield "weight", measure.compute
    # Nulls are defined for a single random matrix with more than one eigenvalue.
    if measure.null is not None and not spectrum.is_product and not spectrum.is_of_norms:
        yield "noise", measure.null
