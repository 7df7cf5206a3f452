"""List the built-in rules with their severities, advice and mutes: rules on causes before rules on consequences."""

from esdmon.alerts.rule import AlertRule
from esdmon.alerts.rules.change import (
    entropy_collapse,
    norm_explosion,
    phase_regression,
    scale_collapse,
    stable_rank_drop,
)
from esdmon.alerts.rules.dead_layer import dead_layer
from esdmon.alerts.rules.health import dead_units, non_finite, reading_failed, stale_monitor
from esdmon.alerts.rules.moves import norm_decay, update_surge
from esdmon.alerts.rules.reset import layer_reset
from esdmon.alerts.rules.spectral import adapter_growth, over_regularized, rank_collapse
from esdmon.alerts.rules.traps import correlation_trap

_SHAPE = ("entropy_collapse", "stable_rank_drop", "phase_regression")
"""Rules on consequences, which a rule on their cause mutes."""

BUILT_IN_RULES = (
    AlertRule(
        "non_finite",
        non_finite,
        severity="error",
        checks=1,
        clear=1,
        counts="readings",
        advice="Restore an earlier checkpoint, then lower the learning rate or clip the gradients.",
    ),
    AlertRule(
        "layer_reset",
        layer_reset,
        checks=1,
        advice="If that is not intended, check whether the layer was initialised again, or a part of a checkpoint was "
        "not loaded.",
        mutes=("norm_explosion", "norm_decay", "update_surge", "correlation_trap", *_SHAPE),
        mutes_elsewhere=("norm_decay", "update_surge", "correlation_trap", *_SHAPE),
    ),
    AlertRule(
        "norm_explosion",
        norm_explosion,
        severity="error",
        checks=2,
        counts="readings",
        advice="Lower the learning rate, clip the gradients, or restore an earlier checkpoint. If the learning rate is "
        "as before, check the sign and the scale of the loss.",
        mutes=(
            "rank_collapse",
            "over_regularized",
            "correlation_trap",
            "scale_collapse",
            "norm_decay",
            "layer_reset",  # once it fires: it moves by any distance then
            "update_surge",
            "dead_layer",
            "dead_units",
            *_SHAPE,
        ),
        needs=("spectral_norm",),
    ),
    AlertRule(
        "update_surge",
        update_surge,
        advice="Unless data or task were changed on purpose, check the learning rate, the batch size, the labels, the "
        "scale of inputs and loss, and the sign of the loss; lower the learning rate or clip the gradients.",
        mutes=("correlation_trap", *_SHAPE),
        mutes_elsewhere=("norm_decay", "correlation_trap", *_SHAPE),
    ),
    AlertRule(
        "rank_collapse",
        rank_collapse,
        severity="error",
        advice="Lower the weight decay, the usual cause, or the learning rate.",
        mutes=("over_regularized", "correlation_trap", "norm_decay", "dead_units", *_SHAPE),
        needs=("hard_rank",),
    ),
    AlertRule(
        "scale_collapse",
        scale_collapse,
        advice="Lower the weight decay, or whatever else shrinks the weights; or raise the learning rate.",
        mutes=("over_regularized", "correlation_trap", "norm_decay", "update_surge", "dead_units", *_SHAPE),
        needs=("frobenius_norm",),
    ),
    AlertRule(
        "norm_decay",
        norm_decay,
        advice="Lower the weight decay, or whatever else makes the weights smaller, such as a penalty in the loss or "
        "code that scales them after step(); or raise the learning rate. If none of these applies, the initial weights "
        "may have been too large.",
        mutes=("over_regularized", "correlation_trap", "update_surge", "dead_units", *_SHAPE),
        needs=("frobenius_norm",),
    ),
    AlertRule(
        "correlation_trap",
        correlation_trap,
        advice="If the trap came at once, check what changed then in the data, the targets or the loss; otherwise look "
        "for a few huge elements or a mean that is not zero, and clip or decay them.",
        mutes=_SHAPE,
        needs=("trap",),
    ),
    AlertRule(
        "entropy_collapse",
        entropy_collapse,
        advice="Check the weight decay, the terms of the loss and the learning rate.",
        mutes=_SHAPE[1:],
        needs=("matrix_entropy",),
    ),
    AlertRule(
        "stable_rank_drop",
        stable_rank_drop,
        advice="Check whether the loss has spiked since then, from a bad batch or a raised learning rate; clip the "
        "gradients.",
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
        advice="Check whether the layer was initialised again or not loaded, or the learning rate is too high.",
    ),
    AlertRule(
        "dead_layer",
        dead_layer,
        checks=5,
        clear=1,
        counts="reports",
        advice="Check whether the layer is detached, frozen, behind dead units or not reached by the loss; if that is "
        "intended, remove it from the optimizer. If all layers stop at once, check the loss, what clips the gradients, "
        "and the scaler, which skips steps with NaN.",
        mutes=("norm_decay", "scale_collapse", "dead_units"),  # what decay does to a weight without a gradient
    ),
    AlertRule(
        "dead_units",
        dead_units,
        advice="Lower the learning rate or the weight decay, and check which inputs and gradients reach these units; "
        "if they are pruned on purpose, disable the rule.",
        needs=("zero_rows",),
    ),
    AlertRule(
        "adapter_growth",
        adapter_growth,
        severity="info",
        advice="Lower the learning rate or the adapter's scale, stop earlier, or merge the adapter with a smaller "
        "weight.",
        needs=("base_ratio",),
    ),
    AlertRule(
        "reading_failed",
        reading_failed,
        clear=1,
        counts="reports",
        advice="See monitor.errors; leave the layer out with exclude=, or report the error to esdmon.",
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
