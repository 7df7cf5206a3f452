"""Rules on change: a layer against its own baseline, or against the first reading of the run."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import dropwhile
from statistics import median, median_low
from typing import Literal, TypeAlias

from esdmon.alerts.rule import Finding, History, Peak, evidence_of, measured
from esdmon.alerts.rules.baseline import WARM_UP, fit_baseline
from esdmon.alerts.rules.trap_words import what_traps
from esdmon.records import LayerReport, Severity
from esdmon.spectrum import Phase

Quantity: TypeAlias = Callable[[LayerReport], float]
Direction: TypeAlias = Literal["up", "down"]

SIGMAS = 5.0
"""Standard deviations of a layer's own scatter that a leap must exceed, besides the factor. Our choice: some layers
scatter by a factor of two without a fault."""
BLOWN_UP = 10.0
"""‖ΔW‖/‖W‖ from the start to the first reading above which a weight has blown up. Our choice: it was below 1 in 65
healthy trainings, except for weights that start at zero, where it is infinite."""
NOISE_LIKE = 0.7
"""Stable rank, as a share of that of noise, above which a layer has not begun to learn; its stable rank drops when it
does. Set on healthy trainings (tests/benchmarks/false_alarms.py): in one in ten a layer does so."""
_OUTSIDE = (Phase.UNCLASSIFIED, Phase.RANK_COLLAPSE)  # not part of the order of the phases
_DECAYING = 0.5  # of the length of a step: for a gradient without decay it is about 0, for decay alone 1
_FALLS = 0.02  # of the way from what was expected, in logarithms, by which a norm falls from reading to reading
_SPREAD = 1.05  # factor of the stable rank from which the learned directions shrink more than the others
_RAISED = 1.5  # factor from which a learning rate has been raised
_LULL = 0.1  # of the largest step ratio of the run, which the layer has withstood; our choice
_FEW = 64  # eigenvalues below which a rank says little about directions; our choice


def norm_explosion(history: History, *, factor: float = 3.0, back: float = 2.0) -> Iterable[Finding]:
    """The weights of a layer blow up.

    Fires when the spectral norm is more than 3 times the value expected from the layer's baseline, more than five
    standard deviations of its scatter away, and more than 3 times its value at the first reading. A learning rate that
    is far too high does this, often before the loss rises or turns NaN. It also fires when the weight had moved by more
    than 10 times its own norm before its first reading: it blew up before there was a baseline.

    Resolved when the norm is below twice the expected value.

    Source: that weights grow without bound where gradient descent is unstable is textbook; the factors are ours.
    """
    for now, norm, before in _leaps(history, _norm, "up", factor=factor, back=back):
        if now.name in history.firing or norm > factor * _norm(history.first[now.name]):
            what = f"spectral norm {norm:.3g} is over {factor:g} times the {before:.3g} expected from its baseline"
            yield _finding(now, what, before)
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        before = _norm(first) / (1 + first.update_ratio)
        if name not in history.firing and BLOWN_UP < first.update_ratio < math.inf and _norm(now) > back * before:
            what = f"spectral norm {_norm(now):.3g}, up from about {before:.3g} before step {first.step}"
            yield _finding(now, what, before)


def correlation_trap(
    history: History, *, trap: float = 1.5, factor: float = 2.0, back: float = 1.2
) -> Iterable[Finding]:
    """A mean that is not zero, or a single huge element, dominates a layer.

    Fires when the measure `trap` is above 1.5 and more than twice the value expected from the layer's baseline. Above
    1, the mean or the largest element makes a spike in the spectrum even after the elements are shuffled; at 1.5 that
    spike is far beyond chance. Corrupted or badly scaled weights look like this. A slow rise is a notice (`info`), and
    only above 1.5 times the first reading: many healthy networks have layers with a mean of their own, and late
    over-training makes them too.

    Resolved when it is below 1.2.

    Source: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025), who warn that not
    every trap harms; the closed form is the transition of Baik, Ben Arous, Péché (2005). The factors are ours.
    """
    leapt = _leapt(history, _trap, "up", factor)
    for name, readings in history.layers.items():
        value, before = _trap(readings[-1]), _trap(history.first[name])
        limit = back if name in history.firing else max(trap, 1.5 * before)
        if value > limit:
            yield _finding(
                readings[-1],
                f"trap {value:.2f} is above {limit:.2f}, from {before:.2f} at step {history.first[name].step} "
                f"({what_traps(readings[-1])})",
                before,
                None if name in leapt else "info",
            )


def update_surge(history: History, *, factor: float = 4.0, peak: float = 1.5, back: float = 2.0) -> Iterable[Finding]:
    """Single steps move a layer several times as far as before.

    Fires when ‖ΔW‖/‖W‖ of one optimizer step, `step_ratio`, is more than 4 times the value expected from the layer's
    baseline, and more than five standard deviations of its scatter away. The learning rate was raised, or the gradients
    have grown: by smaller batches, wrong labels, inputs or a loss of another scale. The message says which, where the
    optimizer is known. It comes before norms, ranks and elements show it, so it mutes those rules.

    Where the learning rate is not known, or was as high before, as in a schedule with restarts, the ratio must also be
    more than 1.5 times the largest of the run so far. Where it was not raised, the ratio must be more than a tenth of
    that: the gradients of a layer that has almost stopped learning leap without harm.

    Adam and its kin divide gradients by their size, so there only a raised learning rate is seen, and what makes
    gradients less or more noisy.

    A step that makes the weight shorter rather than turning it, by half of its length or more, is decay, and no surge:
    see `norm_decay`.

    Resolved when it is below twice the expected value.

    Source: the ratio of update to weight is a common diagnostic of learning rates; the factors are ours.
    """
    for now, ratio, before in _leaps(history, _step_ratio, "up", factor=factor, back=back):
        usual, highest = _usual_rate(history.baseline[now.name]), history.peak.get(now.name, Peak())
        rate = now.learning_rate
        is_restart = not rate <= _RAISED * usual and not rate > _RAISED * highest.learning_rate
        is_lull = not rate > _RAISED * usual and ratio < _LULL * highest.step_ratio
        if -now.step_growth > _DECAYING * ratio:
            continue
        if now.name in history.firing or not (is_restart or is_lull) or ratio > peak * highest.step_ratio:
            what = f"one step moves it by {ratio:.2g} of its norm, over {factor:g} times the {before:.2g} expected"
            evidence = {"step_ratio": ratio, "learning_rate": rate, "before": before}
            yield Finding(now.name, f"{what}{_why_faster(rate, usual)}", evidence)


def _usual_rate(baseline: Sequence[LayerReport]) -> float:
    """Return the median learning rate of a baseline; NaN where it is not known."""
    rates = [layer.learning_rate for layer in baseline if layer.learning_rate > 0]
    return median(rates) if rates else math.nan


def _why_faster(rate: float, usual: float) -> str:
    """Return whether the learning rate or the gradients have grown, where that is known."""
    if rate > _RAISED * usual:
        return f"; its learning rate rose from {usual:.2g} to {rate:.2g}"
    return (
        f"; its learning rate is {rate:.2g} as before, so its gradients have grown" if rate <= usual * _RAISED else ""
    )


def layer_reset(history: History, *, moved: float = 1.05, factor: float = 1.5) -> Iterable[Finding]:
    """The weights of a layer were replaced, not trained.

    Fires when a weight has moved by more than its norm since its last reading, and by more than its norm is now, as one
    that has nothing in common with the last; and by more than 1.5 times as far as so many steps could move it. It was
    initialised again, or a part of a checkpoint was not loaded. Where all layers have moved so, it is a notice
    (`info`): another checkpoint was loaded. A weight that is set back to a value it had shortly before has not moved
    far enough; then `phase_regression` may find it.

    It fires at the first reading that shows it, since the next one moves by steps again.

    Resolved when it moves by steps again.

    Source: ours.
    """
    found = []
    for name, readings in history.layers.items():
        now, before = readings[-1], [*history.baseline[name], *readings][-2:-1]
        ratios = [layer.step_ratio for layer in (*history.baseline[name], now) if layer.step_ratio >= 0]
        if not before or len(ratios) < WARM_UP or not moved < now.update_ratio < math.inf:
            continue
        reach = (now.step - before[0].step) * max(ratios)
        # Not one that was small, and is set back to a larger value that it had before.
        is_unlike = now.update_ratio * _frobenius(before[0]) > moved * _frobenius(now)
        if now.update_ratio > factor * reach and is_unlike:
            what = (
                f"it has moved by {now.update_ratio:.2g} of its norm since step {before[0].step}, and its steps reach"
            )
            found.append(Finding(name, f"{what} {reach:.2g}", {"update_ratio": now.update_ratio, "before": reach}))
    is_whole = len(found) > 1 and len(found) == sum(layer.status == "ok" for layer in history.report)
    yield from (replace(each, severity="info") if is_whole else each for each in found)


def norm_decay(history: History, *, factor: float = 1.1, back: float = 1.05) -> Iterable[Finding]:
    """The weights of a layer shrink.

    Fires when the Frobenius norm is below 1/1.1 of the value expected from the layer's baseline, more than five
    standard deviations of its scatter away, and still falling from reading to reading. Weight decay, or another
    penalty on weights, takes away more than the gradients restore. The learned directions vanish last, so effective
    rank, alpha and single large elements change as a consequence, and those rules are muted; `scale_collapse` says when
    a tenth is left. Where the stable rank rises meanwhile, the learned directions shrink first: the layer unlearns
    something, and its weights do not decay.

    Resolved when the norm is above 1/1.05 of that value.

    Source: ours.
    """
    for now, norm, before in _leaps(history, _frobenius, "down", factor=factor, back=back):
        last = [_frobenius(layer) for layer in history.layers[now.name][-2:]]
        is_falling = len(last) > 1 and last[0] > norm * (before / norm) ** _FALLS
        ranks = [rank for layer in history.baseline[now.name] if (rank := measured(layer, "stable_rank")[0]) > 0]
        is_unlearning = bool(ranks) and measured(now, "stable_rank")[0] > _SPREAD * median(ranks)
        if now.name in history.firing or (is_falling and not is_unlearning):
            what = f"Frobenius norm {norm:.3g} is below 1/{factor:g} of the {before:.3g} expected from its baseline"
            yield _finding(now, what, before)


def scale_collapse(history: History, *, factor: float = 10.0, back: float = 5.0) -> Iterable[Finding]:
    """The weights of a layer have almost vanished.

    Fires when the Frobenius norm is less than a tenth of its value at the first reading of the run. Too strong a weight
    decay for the learning rate shrinks weights until they carry no signal; in a network with normalisation the loss may
    not show it.

    Resolved when the norm is above a fifth of that value.

    Source: the name is that of C. H. Martin, T. Peng, M. W. Mahoney, Nature Communications 12 (2021) 4122, who see it
    in λmax; the whole norm shows it earlier, because the learned directions vanish last. The factors are ours.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        (norm,), (before,) = measured(now, "frobenius_norm"), measured(first, "frobenius_norm")
        if norm * (back if name in history.firing else factor) < before:
            what = f"Frobenius norm {norm:.3g} is below 1/{factor:g} of the {before:.3g} at step {first.step}"
            yield _finding(now, what, before)


def entropy_collapse(history: History, *, factor: float = 2.0, back: float = 1.5) -> Iterable[Finding]:
    """A layer uses far fewer directions than before.

    Fires when the effective rank M^S, with S the matrix entropy, is less than half of the value expected from the
    layer's baseline, and more than five standard deviations of its scatter away. The rows of an embedding that are all
    drawn to one point look like this, and so does a layer that a single direction dominates.

    Resolved when it is above two thirds of the expected value.

    Source: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007); the factors
    are ours.
    """
    for now, rank, before in _leaps(history, _effective_rank, "down", factor=factor, back=back):
        what = f"effective rank {rank:.3g} is below 1/{factor:g} of the {before:.3g} expected from its baseline"
        yield _finding(now, what, before)


def stable_rank_drop(history: History, *, factor: float = 2.0, back: float = 1.5) -> Iterable[Finding]:
    """One direction of a layer has grown far above the others.

    Fires when the stable rank Σλ/λmax is less than half of the value expected from the layer's baseline, and more than
    five standard deviations of its scatter away. The baseline includes the slow decline of a healthy training. A layer
    whose spectrum was close to noise for most of its baseline is left out: its first spike is the start of learning,
    and may grow for a thousand steps. A loss spike, a bad batch or a raised learning rate shows here.

    Resolved when it is above two thirds of the expected value.

    Source: the measure is that of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the factors are ours.
    """
    for now, rank, before in _leaps(history, _stable_rank, "down", factor=factor, back=back):
        known = [] if now.name in history.firing else [*map(_stable_rank, history.baseline[now.name])]
        usual = median([rank for rank in known if not math.isnan(rank)] or [before])
        if max(before, usual) > NOISE_LIKE * now.nulls.get("stable_rank", math.inf):
            continue
        what = f"stable rank {rank:.3g} is below 1/{factor:g} of the {before:.3g} expected from its baseline"
        yield _finding(now, what, before)


def phase_regression(history: History, *, phases: int = 2, factor: float = 1.5) -> Iterable[Finding]:
    """A layer has gone back towards noise.

    Fires when the phase is two or more before the median phase of the layer's baseline, in the order random-like,
    bleeding-out, bulk+spikes, bulk-decay, heavy-tailed, and the MP soft rank, which is 1 for noise, is more than 1.5
    times the value expected from the baseline. The layer has lost what it learned: it was initialised again by mistake,
    noise exceeds the gradient, or part of a checkpoint was not loaded. Layers on a border between phases change by one,
    and a spike that fades slowly is not a loss.

    Resolved when it is at most one phase before that phase.

    Source: the order and the soft rank are those of C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the distances are
    ours.
    """
    leapt = dict.fromkeys(history.firing, 0.0) | _leapt(history, _soft_rank, "up", factor)
    for name in leapt.keys() & history.layers.keys():
        now = history.layers[name][-1]
        codes = [layer.phase.code for layer in history.baseline[name] if layer.phase not in _OUTSIDE]
        usual = int(history.firing[name]["before"]) if name in history.firing else median_low(codes or [0])
        if now.phase not in _OUTSIDE and now.phase.code <= usual - phases:
            phase = next(phase.value for phase in Phase if phase.code == usual)
            what = f"phase {now.phase.value} (confidence {now.phase_confidence:.1f}), down from {phase} in its baseline"
            yield Finding(name, what, evidence_of(now, "mp_soft_rank", "n_spikes") | {"before": float(usual)})


def _leaps(
    history: History, quantity: Quantity, direction: Direction, *, factor: float, back: float
) -> Iterator[tuple[LayerReport, float, float]]:
    """Yield (reading, value, expected value) for each layer that leaps, or has not come back from its leap."""
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
    """Return the expected value of each layer that is farther from it than the factor and its own scatter allow."""
    found = {}
    for name, readings in history.layers.items():
        # The first readings of a run have no step ratio.
        before = list(dropwhile(math.isnan, map(quantity, history.baseline[name])))
        value = quantity(readings[-1])
        # A leap from the baseline is one from the median too, which takes a thirtieth of the time to compute.
        if not before or not _is_beyond(value, median(before), direction, factor):
            continue
        fitted = fit_baseline(before)
        if fitted is not None:
            expected = fitted.high if direction == "up" else fitted.low
            if _is_beyond(value, expected, direction, max(factor, fitted.scatter**SIGMAS)):
                found[name] = expected
    return found


def _is_beyond(value: float, expected: float, direction: Direction, factor: float) -> bool:
    return value > factor * expected if direction == "up" else factor * value < expected


def _trap(layer: LayerReport) -> float:
    return measured(layer, "trap")[0]


def _soft_rank(layer: LayerReport) -> float:
    return measured(layer, "mp_soft_rank")[0]


def _step_ratio(layer: LayerReport) -> float:
    return layer.step_ratio


def _frobenius(layer: LayerReport) -> float:
    return measured(layer, "frobenius_norm")[0]


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
