"""The rule on correlation traps: a mean, or a single huge element, that dominates a layer."""

from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, value_of, values_of
from esdmon.alerts.rules.change import is_flat
from esdmon.alerts.rules.jumps import finding, frobenius, is_warming_up, jumped, raised_rate
from esdmon.records import LayerReport

_FAINT = 2.0  # times its limit, up to which a trap may be the mean of a row that all others have become; our choice


def correlation_trap(
    history: History, *, trap: float = 1.5, factor: float = 2.0, back: float = 1.2
) -> Iterable[Finding]:
    """A mean that is not zero, or a single huge element, dominates a layer.

    Fires when the measure `trap` is above 1.5 and above 1.5 times its first reading. A trap above 1 means that the mean
    or the largest element makes a spike in the spectrum even after the elements are shuffled. At 1.5 this spike is far
    beyond chance. The message says whether the mean makes the trap, or which element.

    It is a warning if the trap has jumped: it is more than twice the value expected from its baseline, a line fitted to
    earlier readings of the layer, and more than five standard deviations of their scatter above that value. Usual
    causes are corrupted or badly scaled weights, and new data, targets or losses that changed all outputs of the layer
    at once.

    It is only a notice (`info`) in three cases. (1) The trap rises slowly: many healthy layers have a mean of their
    own, and late over-training makes traps too. (2) The mean makes the trap, and some sampled steps of the baseline did
    not move the layer: an expert that got few tokens begins to learn when it gets more. (3) The mean makes the trap
    during a warm-up of the learning rate, as defined in `norm_explosion`.

    Not to be confused with: (1) Large steps and decay, which make traps too: the rules for them fire first and mute
    this one. (2) `entropy_collapse`: rows that are drawn to one point have a mean too. It is reported instead when the
    effective rank has halved, the trap's share of Σw² is less than half of σ₁²/‖W‖_F², and the trap is below twice its
    limit. (3) A trap that was there from the start, as in corrupted weights that were loaded: only growth since the
    first reading counts.

    Resolved when the trap is below 1.2.

    Source: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025), who warn that not
    every trap harms; the closed form is the transition of Baik, Ben Arous, Péché (2005). The factors are ours.
    """
    jumped_now = jumped(history, _trap, "up", factor)
    for name, readings in history.layers.items():
        value, before = _trap(readings[-1]), _trap(history.first[name])
        is_old = name in history.firing
        limit = back if is_old else max(trap, 1.5 * before)
        may_be_minor = limit < value < _FAINT * limit and not is_old
        if value > limit and not (may_be_minor and _is_minor(readings[-1]) and is_flat(history, name)):
            yield finding(
                readings[-1],
                f"trap {value:.2f} is above {limit:.2f}, from {before:.2f} at step {history.first[name].step} "
                f"({what_traps(readings[-1])}){raised_rate(readings[-1], history.baseline[name])}",
                before,
                None if name in jumped_now and not _begins_to_learn(history, name) else "info",
            )


def _begins_to_learn(history: History, name: str) -> bool:
    """Return whether a layer that hardly moved before, or not at each step, gets a mean but no single huge element."""
    now, baseline = history.layers[name][-1], history.baseline[name]
    is_local = value_of(now, "trap_is_local") == 1
    return not is_local and (is_warming_up(now, baseline) or any(layer.step_ratio == 0 for layer in baseline))


def what_traps(layer: LayerReport) -> str:
    """Return whether single elements or the mean make a trap, with their share of Σw²."""
    if "trap_share" not in layer.measures:
        return "above 1 the mean or one huge element makes a spike in the spectrum"
    local, mean, count, row, column, value, share = values_of(
        layer, *(f"trap_{field}" for field in ("is_local", "mean", "count", "row", "column", "value", "share"))
    )
    if not local:
        return f"diffuse: the mean is {mean:.2g} standard deviations, {share:.0%} of the squares"
    others = f" and {count - 1:.0f} others" if count > 1 else ""
    return f"local: {value:.3g} in row {row:.0f}, column {column:.0f}{others}, {share:.0%} of the squares"


def _trap(layer: LayerReport) -> float:
    return value_of(layer, "trap")


def _is_minor(layer: LayerReport) -> bool:
    """Return whether the trap's share of Σw² is less than half of that of the first direction."""
    return 2 * value_of(layer, "trap_share") * frobenius(layer) ** 2 < value_of(layer, "spectral_norm") ** 2
