"""Rules on how a layer has changed: against its own baseline, or against the first reading of the run."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median, median_low
from typing import Literal, TypeAlias

from esdmon.alerts.rule import Finding, History, evidence_of, measured
from esdmon.alerts.rules.baseline import fit_baseline
from esdmon.records import LayerReport, Severity
from esdmon.spectrum import Phase

Quantity: TypeAlias = Callable[[LayerReport], float]
Direction: TypeAlias = Literal["up", "down"]

SIGMAS = 5.0
"""Standard deviations of a layer's own scatter that a leap must exceed, besides the factor. Our choice: a factor of two
alone is nothing in a layer that goes to and fro by as much."""
BLOWN_UP = 10.0
"""‖ΔW‖/‖W‖ from when watching began to the first reading, above which a weight blew up. Ours: in 65 healthy trainings
it was below 1, but for weights that start at zero, of which it is infinite."""
NOISE_LIKE = 0.7
"""Stable rank over that of noise down to which a layer has yet to begin: its stable rank leaps when it does. Set on
healthy trainings (tests/benchmarks/false_alarms.py), of which one in ten does so."""
_OUTSIDE = (Phase.UNCLASSIFIED, Phase.RANK_COLLAPSE)  # of the order of the phases
_FEW = 64  # eigenvalues: of a matrix with fewer a rank is hardly a number of directions; as for phases


def norm_explosion(history: History, *, factor: float = 3.0, back: float = 2.0) -> Iterable[Finding]:
    """The weights of a layer blow up.

    Fires when the spectral norm is more than 3 times what the layer's last readings lead one to expect, beyond five
    times their scatter, and more than 3 times what it was at the first reading: to come back to that is no explosion. A
    learning rate that is far too high does this, often before the loss says so or turns NaN. Fires as well where the
    weight had moved by 10 times its own norm when it was read for the first time: it blew up before there was anything
    to expect.

    Resolved when the norm is below twice what it was.

    Source: that weights grow without bound where gradient descent is unstable is textbook; the factors are ours.
    """
    for now, norm, before in _leaps(history, _norm, "up", factor=factor, back=back):
        if now.name in history.firing or norm > factor * _norm(history.first[now.name]):
            yield _finding(now, f"spectral norm {norm:.3g}, and {before:.3g} was to be expected", before)
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        before = _norm(first) / (1 + first.update_ratio)
        if name not in history.firing and BLOWN_UP < first.update_ratio < math.inf and _norm(now) > back * before:
            what = f"spectral norm {_norm(now):.3g}, and about {before:.3g} before step {first.step}"
            yield _finding(now, what, before)


def correlation_trap(
    history: History, *, trap: float = 1.5, factor: float = 2.0, back: float = 1.2
) -> Iterable[Finding]:
    """A mean that is not zero, or a single huge element, dominates a layer.

    The measure `trap` is above 1 where such a mean or element makes a spike in the spectrum even when the elements are
    put in random order; at 1.5 that spike is far beyond chance. What dominates then is not what the elements say
    together. Fires when it is above 1.5 and has leapt to more than twice what the layer's last readings lead one to
    expect: corrupted or badly scaled weights look like this. Where it has risen slowly it is a notice (`info`), and
    only where it was not so from the start: layers with a mean of their own are common in healthy networks, and late
    over-training makes them too.

    Resolved when it is below 1.2.

    Source: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025), who warn that not
    every trap harms; the closed form is the transition of Baik, Ben Arous, Péché (2005). The factors are ours.
    """
    leapt = _leapt(history, _trap, "up", factor)
    for name, readings in history.layers.items():
        value, before = _trap(readings[-1]), _trap(history.first[name])
        if value > (back if name in history.firing else max(trap, 1.5 * before)):
            yield _finding(
                readings[-1],
                f"trap {value:.2f}; {before:.2f} at step {history.first[name].step}, and above 1 a mean or a huge "
                "element shows in the spectrum",
                before,
                None if name in leapt else "info",
            )


def scale_collapse(history: History, *, factor: float = 10.0, back: float = 5.0) -> Iterable[Finding]:
    """The weights of a layer have all but vanished.

    Fires when the Frobenius norm is less than a tenth of what it was at the first reading of the run. Weight decay that
    is too strong for the learning rate shrinks weights until they carry no signal; in a network with normalisation the
    loss may not show it.

    Resolved when the norm is above a fifth of that again.

    Source: the name is that of C. H. Martin, T. Peng, M. W. Mahoney, Nature Communications 12 (2021) 4122, who see it
    in λmax; the whole norm shows it earlier, since what was learned vanishes last. The factors are ours.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        (norm,), (before,) = measured(now, "frobenius_norm"), measured(first, "frobenius_norm")
        if norm * (back if name in history.firing else factor) < before:
            yield _finding(now, f"Frobenius norm {norm:.3g}, and {before:.3g} at step {first.step}", before)


def entropy_collapse(history: History, *, factor: float = 2.0, back: float = 1.5) -> Iterable[Finding]:
    """A layer has come to use far fewer directions than it did.

    Fires when the effective rank M^S, with S the matrix entropy, is less than half of what the layer's last readings
    lead one to expect, and beyond five times their scatter. All rows of an embedding that are drawn together look like
    this, and a layer that one direction has taken over.

    Resolved when it is above two thirds of what it was.

    Source: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007); the factors
    are ours.
    """
    for now, rank, before in _leaps(history, _effective_rank, "down", factor=factor, back=back):
        yield _finding(now, f"effective rank {rank:.3g}, and {before:.3g} was to be expected", before)


def stable_rank_drop(history: History, *, factor: float = 2.0, back: float = 1.5) -> Iterable[Finding]:
    """One direction of a layer has come to stand far above the others.

    Fires when the stable rank Σλ/λmax is less than half of what the layer's last readings lead one to expect, and
    beyond five times their scatter. The slow decline of a healthy training is part of what is expected, and a layer
    that was still like noise is not judged: its first spike is the beginning of learning. A loss spike, a bad batch, or
    a learning rate that has been raised shows here.

    Resolved when it is above two thirds of what it was.

    Source: the measure is that of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the factors are ours.
    """
    for now, rank, before in _leaps(history, _stable_rank, "down", factor=factor, back=back):
        if before > NOISE_LIKE * now.nulls.get("stable_rank", math.inf):
            continue
        yield _finding(now, f"stable rank {rank:.3g}, and {before:.3g} was to be expected", before)


def phase_regression(history: History, *, phases: int = 2, factor: float = 1.5) -> Iterable[Finding]:
    """A layer has gone back towards noise.

    Fires when the phase is two or more before the one it used to be in, in the order random-like, bleeding-out,
    bulk+spikes, bulk-decay, heavy-tailed, and the MP soft rank, which is 1 for noise, has leapt to more than 1.5 times
    what the layer's last readings lead one to expect. What was learned there is lost: the layer was initialised anew by
    mistake, noise is larger than the gradient, a part of a checkpoint was not loaded. Layers on a border between phases
    go to and fro by one, and a spike that fades away slowly is no loss.

    Resolved when it is at most one phase before that again.

    Source: the order and the soft rank are those of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the distances are
    ours.
    """
    leapt = dict.fromkeys(history.firing, 0.0) | _leapt(history, _soft_rank, "up", factor)
    for name in leapt.keys() & history.layers.keys():
        now = history.layers[name][-1]
        before = [layer.phase for layer in history.baseline[name] if layer.phase not in _OUTSIDE]
        used_to_be = int(history.firing[name]["before"]) if name in history.firing else _middle(before)
        if now.phase not in _OUTSIDE and now.phase.code <= used_to_be - phases:
            phase = next(phase.value for phase in Phase if phase.code == used_to_be)
            what = f"{now.phase.value} (confidence {now.phase_confidence:.1f}), and it used to be {phase}"
            yield Finding(name, what, evidence_of(now, "mp_soft_rank", "n_spikes") | {"before": float(used_to_be)})


def _leaps(
    history: History, quantity: Quantity, direction: Direction, *, factor: float, back: float
) -> Iterator[tuple[LayerReport, float, float]]:
    """(reading, value, what it would have been) of each layer that has leapt, or has not come back from its leap."""
    leapt = _leapt(history, quantity, direction, factor)
    for name, readings in history.layers.items():
        value = quantity(readings[-1])
        if name in history.firing:
            before = history.firing[name]["before"]
            if value > before * back if direction == "up" else value * back < before:
                yield readings[-1], value, before
        elif name in leapt:
            yield readings[-1], value, leapt[name]


def _leapt(history: History, quantity: Quantity, direction: Direction, factor: float) -> dict[str, float]:
    """What was to be expected, of each layer that is farther from it than a factor and its own scatter allow."""
    found = {}
    for name, readings in history.layers.items():
        before, value = [quantity(layer) for layer in history.baseline[name]], quantity(readings[-1])
        # A leap from the baseline is one from the median too, which is had for a thirtieth of the time.
        if not before or not (
            value > factor * median(before) if direction == "up" else factor * value < median(before)
        ):
            continue
        expected = fit_baseline(before)
        if expected is not None:
            least = max(factor, expected.scatter**SIGMAS)
            if value > expected.high * least if direction == "up" else value * least < expected.low:
                found[name] = expected.high if direction == "up" else expected.low
    return found


def _middle(phases: Sequence[Phase]) -> int:
    return median_low(phase.code for phase in phases) if phases else 0


def _trap(layer: LayerReport) -> float:
    return measured(layer, "trap")[0]


def _soft_rank(layer: LayerReport) -> float:
    return measured(layer, "mp_soft_rank")[0]


def _norm(layer: LayerReport) -> float:
    return measured(layer, "spectral_norm")[0]


def _stable_rank(layer: LayerReport) -> float:
    return measured(layer, "stable_rank")[0] if layer.n_eigenvalues >= _FEW else math.nan


def _effective_rank(layer: LayerReport) -> float:
    entropy = measured(layer, "matrix_entropy")[0]
    return float(layer.n_eigenvalues**entropy) if layer.n_eigenvalues >= _FEW else math.nan


def _finding(now: LayerReport, what: str, before: float, severity: Severity | None = None) -> Finding:
    measures = evidence_of(now, "spectral_norm", "frobenius_norm", "stable_rank", "matrix_entropy", "trap")
    return Finding(now.name, what, measures | {"before": before}, severity)
