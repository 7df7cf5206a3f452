"""The rules that are asked by default: those that see a cause before those that see what comes of it."""

from esdmon.alerts.rule import AlertRule
from esdmon.alerts.rules.change import (
    correlation_trap,
    entropy_collapse,
    norm_explosion,
    phase_regression,
    scale_collapse,
    stable_rank_drop,
)
from esdmon.alerts.rules.health import dead_layer, non_finite, reading_failed, stale_monitor
from esdmon.alerts.rules.spectral import over_regularized, rank_collapse

_SHAPE = ("entropy_collapse", "stable_rank_drop", "phase_regression")
"""What changes in a spectrum when one of the rules before has seen why."""

BUILT_IN_RULES = (
    AlertRule(
        "non_finite",
        non_finite,
        severity="error",
        checks=1,
        clear=1,
        counts="readings",
        advice="Go back to a checkpoint before it, and lower the learning rate or clip the gradients.",
    ),
    AlertRule(
        "norm_explosion",
        norm_explosion,
        severity="error",
        checks=2,
        advice="Lower the learning rate, clip the gradients, or go back to a checkpoint before it.",
        mutes=("rank_collapse", "correlation_trap", "scale_collapse", *_SHAPE),
        needs=("spectral_norm",),
    ),
    AlertRule(
        "rank_collapse",
        rank_collapse,
        severity="error",
        advice="Weight decay far too strong is the usual cause; lower it, or the learning rate.",
        mutes=("over_regularized", "correlation_trap", *_SHAPE),
        needs=("hard_rank",),
    ),
    AlertRule(
        "scale_collapse",
        scale_collapse,
        advice="Lower the weight decay, or raise the learning rate.",
        mutes=("correlation_trap", *_SHAPE),
        needs=("frobenius_norm",),
    ),
    AlertRule(
        "correlation_trap",
        correlation_trap,
        advice="Look at the layer's elements: a few huge ones, or a mean that is not zero. Clip or decay them.",
        mutes=_SHAPE,
        needs=("trap",),
    ),
    AlertRule(
        "entropy_collapse",
        entropy_collapse,
        advice="Look for what draws the layer into few directions: weight decay, a term of the loss, a learning rate.",
        mutes=_SHAPE[1:],
        needs=("matrix_entropy",),
    ),
    AlertRule(
        "stable_rank_drop",
        stable_rank_drop,
        advice="Look at the loss since then: a bad batch, or a learning rate that was raised? Clip the gradients.",
        mutes=_SHAPE[2:],
        needs=("stable_rank",),
    ),
    AlertRule(
        "over_regularized",
        over_regularized,
        advice="Lower the learning rate or the weight decay, or raise the batch size; if the validation loss still "
        "falls, wait.",
        mutes=("phase_regression",),
        needs=("alpha", "alpha_high", "alpha_stderr", "xmin", "erg_gap", "frobenius_norm"),
    ),
    AlertRule(
        "phase_regression",
        phase_regression,
        needs=("mp_soft_rank",),
        advice="Was the layer initialised or loaded anew? Is the learning rate too high for what is left to learn?",
    ),
    AlertRule(
        "dead_layer",
        dead_layer,
        checks=5,
        clear=1,
        counts="reports",
        advice="Is it detached, frozen, or not reached by the loss? Take it out of the optimizer if that is meant.",
    ),
    AlertRule(
        "reading_failed",
        reading_failed,
        clear=1,
        counts="reports",
        advice="monitor.errors has the errors; leave the layer out with exclude=, or report the error to esdmon.",
    ),
    AlertRule(
        "stale_monitor",
        stale_monitor,
        severity="info",
        clear=1,
        counts="reports",
        advice="Raise budget=, leave out the largest matrices with max_eigenvalues=, or read fewer layers.",
    ),
)
