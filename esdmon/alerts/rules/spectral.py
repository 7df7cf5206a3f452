"""Rules on what a spectrum is."""

import math
from collections.abc import Iterable

from esdmon.alerts.rule import Finding, History, evidence_of, measured
from esdmon.records import LayerReport
from esdmon.spectrum import Phase

_LOST = 0.98  # of a rank: what is below has been lost, and is not a whim of the tolerance


def over_regularized(
    history: History, *, alpha: float = 2.0, erg_ratio: float = 0.5, back: float = 2.1
) -> Iterable[Finding]:
    """The tail of a layer's spectrum is heavier than the critical one.

    Fires when alpha, where it means something, is below 2 by more than its uncertainty: `alpha_high`, the largest of
    the fits that are nearly as good, and two standard errors besides. Such layers hold few, very strong correlations:
    they begin to describe the training examples rather than what those have in common, and test accuracy falls, often
    long before the training loss says anything. Tiny batches, a learning rate that is too large for them, and too much
    regularisation lead there.

    The second witness is the ERG tail, of volume one. At the ideal alpha of 2 the power law begins where it does; where
    it begins clearly below, at less than half of that eigenvalue, theory says the same by another way, and the alert is
    a warning. Else it is a notice (`info`), since alpha then stands alone: in healthy trainings recurrent layers, and
    layers trained with Muon, reach an alpha of 1.65 at 0.7 or more.

    Only a layer whose alpha was 2 or more at the first reading of the run counts. One that came with less is as it is:
    layers of pretrained models, and those that start at zero, whose first weights are a few gradients.

    Resolved when alpha is above 2.1. A rank collapse mutes it: the few eigenvalues that are left make any alpha. If the
    validation loss still falls, wait.

    Source: C. H. Martin, C. Hinrichs, "SETOL: a semi-empirical theory of (deep) learning" (2025); the half is ours.
    """
    for name, readings in history.layers.items():
        now = readings[-1]
        value, high, stderr = measured(now, "alpha", "alpha_high", "alpha_stderr")
        if measured(history.first[name], "alpha")[0] < alpha:
            continue
        if name in history.firing:
            # What is no tail any more is no evidence that the tail was well.
            wrong = value < back and now.phase not in (Phase.RANDOM_LIKE, Phase.BLEEDING_OUT)
        else:
            wrong = now.alpha_is_meaningful and high + 2 * stderr < alpha
        if wrong:
            ratio = _erg_ratio(now)
            agrees = ratio < erg_ratio
            yield Finding(
                name,
                f"alpha {value:.2f} (at most {high:.2f} ± {stderr:.2f}) is below {alpha:g}, and the power law begins "
                f"at {ratio:.2g} of where the ERG tail does, which {'agrees' if agrees else 'does not say so'}",
                evidence_of(now, "alpha", "alpha_high", "alpha_stderr", "n_tail", "ks_distance", "erg_gap"),
                None if agrees else "info",
            )


def rank_collapse(history: History, *, back: float = 0.97) -> Iterable[Finding]:
    """A share of the eigenvalues of a layer is zero: the sixth of the 5+1 phases.

    Fires when the phase is rank-collapse: more than 5 % of the eigenvalues cannot be told from zero, with a gulf
    between them and the rest. The layer has lost directions for good. Weight decay that is far too strong is the usual
    cause.

    A layer that was so at the first reading of the run is a notice (`info`) as long as it loses no more: it may have
    come so. While its rank rises it is nothing: layers that start at zero fill up in this way.

    Resolved when the rank is back at 97 % of the eigenvalues.

    Source: C. H. Martin, M. W. Mahoney, JMLR 22 (2021) 165; the limits are in `PhaseThresholds`.
    """
    for name, readings in history.layers.items():
        now, first = readings[-1], history.first[name]
        (rank,), (before,) = measured(now, "hard_rank"), measured(first, "hard_rank")
        came_so = first.phase is Phase.RANK_COLLAPSE
        if name in history.firing:
            wrong = rank < back * now.n_eigenvalues
        else:
            wrong = now.phase is Phase.RANK_COLLAPSE and not (came_so and rank > before)
        if wrong:
            yield Finding(
                name,
                f"rank {rank:.0f} of {now.n_eigenvalues}; {before:.0f} at step {first.step}",
                evidence_of(now, "hard_rank", "stable_rank", "matrix_entropy"),
                "info" if came_so and rank > _LOST * before else None,
            )


def _erg_ratio(layer: LayerReport) -> float:
    """Where the power law begins over where the ERG tail does, both at mean λ = 1."""
    xmin, gap, norm = measured(layer, "xmin", "erg_gap", "frobenius_norm")
    begins = xmin * layer.N * layer.n_eigenvalues / norm**2 if norm > 0 else math.nan
    return begins / (begins - gap) if begins > gap else math.nan
