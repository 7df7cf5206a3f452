"""Compare the power-law fit with other packages: equality of the numbers, and speed.

    python -m pip install -c constraints.txt -e ".[bench]" && python -m tests.benchmarks.power_law

Differences are relative, and the largest over sizes of 50 to 10 000, and to 1000 for `powerlaw`. Ratios are of times
taken in turn in this one process, medians; `rest` is the bulk, its edge and spikes, the phase and every default measure
together.
"""

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

from esdmon.spectrum import PowerLawFit, Spectrum, classify, fit_power_law
from esdmon.spectrum.arrays import Floats
from esdmon.spectrum.measures import BUILT_IN_MEASURES

Draw = Callable[[np.random.Generator, int], Floats]
Numbers = tuple[float, float, float]


def noise(rng: np.random.Generator, size: int) -> Floats:
    """The spectrum of 2n × n Gaussian elements, by the bidiagonal matrix of chi variates that has the same one.

    I. Dumitriu, A. Edelman, "Matrix models for beta ensembles", Journal of Mathematical Physics 43 (2002) 5830.
    """
    diagonal = rng.chisquare(2 * size - np.arange(size))
    below = rng.chisquare(np.arange(size - 1, 0, -1))
    squares = diagonal + np.append(0.0, below)
    lam: Floats = np.abs(eigvalsh_tridiagonal(squares, np.sqrt(diagonal[:-1] * below), lapack_driver="sterf")) / (
        2 * size
    )
    return np.sort(lam)


def spiked(rng: np.random.Generator, size: int) -> Floats:
    """Noise with ten eigenvalues pulled out."""
    lam = noise(rng, size)
    lam[-10:] *= np.linspace(1.5, 8, 10)
    return lam


def trained(rng: np.random.Generator, size: int) -> Floats:
    """Noise whose upper eighth is a power law of exponent 2.8."""
    lam = noise(rng, size)
    count = size // 8
    lam[-count:] = lam[-count - 1] * (1 - rng.random(count)) ** (-1 / 1.8)
    return lam


SPECTRA: dict[str, Draw] = {
    "noise": noise,
    "trained-like": trained,
    "spiked": spiked,
    "Student-t": lambda rng, size: rng.standard_t(3, size) ** 2,
    "exact Pareto": lambda rng, size: (1 - rng.random(size)) ** (-1 / 1.5),
}


def weightwatcher_fit(x: Floats) -> Numbers:
    """(alpha, xmin, D) by WeightWatcher."""
    from weightwatcher.WW_powerlaw import WWFit

    fit = WWFit(x)
    return float(fit.alpha), float(fit.xmin), float(fit.D)


def powerlaw_fit(x: Floats) -> Numbers:
    """The same by powerlaw, its range of alpha opened."""
    import powerlaw

    fit = powerlaw.Fit(x, parameter_ranges={"alpha": [1.0001, None]}, verbose=0)
    return float(fit.power_law.alpha), float(fit.xmin), float(fit.power_law.D)


def seconds(function: Callable[[Floats], object], x: Floats) -> float:
    """One call, in silence."""
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        function(x)
        return time.perf_counter() - start


def difference(fit: PowerLawFit, numbers: Numbers) -> float:
    """The largest relative difference in alpha, xmin and D."""
    ours = (fit.alpha, fit.xmin, fit.ks_distance)
    return max(abs(a - b) / abs(b) for a, b in zip(ours, numbers, strict=True))


def everything_else(spectrum: Spectrum) -> None:
    """What a reading takes besides the fit, which is cached in the spectrum."""
    classify(spectrum)
    for measure in BUILT_IN_MEASURES:
        if not measure.needs:
            measure.compute(spectrum)


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    rng = np.random.default_rng(0)
    print(f"{'spectrum':<14} {'against WeightWatcher':>22} {'against powerlaw 2':>20}")
    for name, draw in SPECTRA.items():
        to_peer, to_package = 0.0, 0.0
        for size in (50, 200, 1000, 4096, 10_000):
            x = draw(rng, size)
            fit = fit_power_law(x)
            to_peer = max(to_peer, difference(fit, weightwatcher_fit(x)))
            if size <= 1000:
                with contextlib.redirect_stdout(io.StringIO()):
                    to_package = max(to_package, difference(fit, powerlaw_fit(x)))
        print(f"{name:<14} {to_peer:22.1e} {to_package:20.1e}", flush=True)
    size = 4096
    print(f"\nn = {size}")
    print(f"{'spectrum':<14} {'fit, ms':>8} {'WeightWatcher/fit':>18} {'powerlaw 2/fit':>15} {'rest/fit':>9}")
    for name, draw in SPECTRA.items():
        x = draw(rng, size)
        fit_power_law(x)
        taken: list[list[float]] = [[], [], [], []]
        for repeat in range(9):
            spectrum = Spectrum.from_eigenvalues(x, shape=(2 * size, size))
            taken[0].append(seconds(fit_power_law, x))
            taken[1].append(seconds(weightwatcher_fit, x))
            if repeat < 3:
                taken[2].append(seconds(powerlaw_fit, x))
            _ = spectrum.power_law
            start = time.perf_counter()
            everything_else(spectrum)
            taken[3].append(time.perf_counter() - start)
        own, peer, package, rest = map(statistics.median, taken)
        print(f"{name:<14} {own * 1e3:8.2f} {peer / own:18.1f} {package / own:15.0f} {rest / own:9.2f}", flush=True)


if __name__ == "__main__":
    main()
