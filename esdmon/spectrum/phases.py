"""Which of the 5+1 phases of training a layer is in.

The phases are those of C. H. Martin, M. W. Mahoney, "Implicit self-regularization in deep neural networks: evidence
from random matrix theory and implications for learning", JMLR 22 (2021) 165, §4: shapes of a spectrum, ordered by how
much of the weights' structure has left the random bulk. The paper defines them in words and pictures; the rules here
put numbers to those. They are deterministic: the same spectrum has the same phase.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from esdmon.spectrum.bulk import Bulk, spike_reach
from esdmon.spectrum.spectrum import Spectrum
from esdmon.spectrum.vuong1989 import power_law_against_exponential


class Phase(Enum):
    """The 5+1 phases, and `UNCLASSIFIED` where none can be told."""

    RANDOM_LIKE = "random-like"
    """A Marchenko-Pastur bulk and nothing else: noise, or nothing learned yet."""
    BLEEDING_OUT = "bleeding-out"
    """Eigenvalues just above the edge of the bulk."""
    BULK_SPIKES = "bulk+spikes"
    """A clean bulk and a few eigenvalues well apart from it."""
    BULK_DECAY = "bulk-decay"
    """The edge has dissolved into a tail."""
    HEAVY_TAILED = "heavy-tailed"
    """A power law, and no edge to speak of."""
    RANK_COLLAPSE = "rank-collapse"
    """A share of the eigenvalues is zero: over-regularised."""
    UNCLASSIFIED = "unclassified"
    """No phase, for a reason that the explanation names."""

    @property
    def code(self) -> int:
        """0 to 5 in the order above, -1 for unclassified: the scalar that is logged."""
        return -1 if self is Phase.UNCLASSIFIED else list(Phase).index(self)


@dataclass(frozen=True, slots=True)
class PhaseThresholds:
    """The borders between phases. R = λ⁺/λmax (MP soft rank), k = spikes.

    The paper's batch-size figure labels R = 1.0 random-like, .92 bleeding-out, .74 to .80 bulk+spikes, .44 bulk-decay
    and <= .29 heavy-tailed, and its table has 1.3 to 4.8 % of the spectrum above the edge up to bulk+spikes, 9 % in
    bulk-decay and 13 % in heavy-tailed: borders between those are marked (figure) and (table). The others were set on
    the ensembles of tests/benchmarks/ensembles.py, or on half of the trained layers in tests/data, and are marked
    (ours); tests/benchmarks/confusion.py and trained.py show how often all of them are right on others than those.
    """

    min_m: int = 64
    """Below, noise on non-Gaussian elements cannot be told from spikes (ours)."""
    max_dead: float = 0.5
    """Share of zero rows or columns above which what is left is not the layer any more (ours)."""
    min_rank: float = 0.95
    """Rank/M below which it has collapsed (ours)."""
    zero_gap: float = 1e-3
    """Median of the zero eigenvalues over that of the others: above, it is one long tail and no collapse (ours)."""
    random_ks: float = 6.0
    """KS·M up to which a bulk is random: 99 % of draws of noise are below 4.5 (ours)."""
    bleeding_soft_rank: float = 0.84
    """R at and above which eigenvalues above the edge are bleeding out (figure: between .80 and .92)."""
    few_share: float = 0.06
    """k/M up to which spikes are few (table: between .048 and .09)."""
    few_spikes: int = 13
    """k up to which they are few whatever M: one for each class but one is 9 for ten classes (table, and ours)."""
    heavy_soft_rank: float = 0.40
    """R below which a tail can be heavy (figure: between .29 and .44)."""
    heavy_share: float = 0.10
    """k/M from which there is no edge to speak of (table: between .09 and .13; set on trained layers) ..."""
    far_soft_rank: float = 0.20
    """... or R up to which λmax is so far that fewer eigenvalues on the way will do (figure: <= .29; ours)."""
    heavy_alpha: float = 3.2
    """alpha below which: an alpha of 3.4 and more reads as bulk-decay (ours)."""
    heavy_ks: float = 1.2
    """D·√n_tail up to which the power law is not refused: true Pareto tails are below .85 in 95 % (ours)."""
    heavy_ratio: float = 1.0
    """Vuong's ratio of power law to exponential above which the power law is preferred (ours)."""
    min_n_tail: int = 20
    """For alpha to mean something: n_tail (ours)."""
    min_spikes: int = 8
    """... k: the largest seen in 64 908 draws of noise is 4 (ours)."""
    tail_spikes: float = 0.1
    """... k/n_tail, unless the phase is heavy-tailed: a tail is not to lie in the bulk (ours)."""
    max_ks_distance: float = 0.10
    """... D: on noise the median is .12 to .14 (ours)."""
    max_alpha_range: float = 1.0
    """... alpha_high − alpha_low: on noise 5 to 20 (ours)."""


@dataclass(frozen=True, slots=True)
class PhaseReading:
    """A phase with what it rests on."""

    phase: Phase
    confidence: float
    """How far the evidence is from the border of its phase: 0 on it, 1 where none is within a factor of 1.5.

    Between them it is ln f/ln 1.5, f the smallest factor by which pieces of the evidence can be changed, each by no
    more, so that the phase is another. Of a count the last number before a border and the first behind it are both on
    it. 0 where there is no phase. The size of the matrix is no evidence.
    """
    explanation: str
    """The evidence, in a sentence or two."""
    alpha_is_meaningful: bool = False
    """Whether alpha describes a tail rather than the edge of noise."""
    over_regularized: bool = False
    """alpha_high + 2·alpha_stderr < 2 where alpha is meaningful: heavier than the critical tail (SETOL)."""


class _Evidence(NamedTuple):
    """What the rules look at; see `PhaseThresholds` for the letters. A tuple, as many are made for a confidence."""

    soft_rank: float
    spikes: float
    few: float
    many: float
    ks: float
    alpha: float
    tail_ks: float
    ratio: float
    reach: float
    """(λmax − λ⁺)/(cut − λ⁺), see `spike_reach`: above 1 there is a spike. Of noise it is around or below 0."""


_FAR = math.log(1.5)
_BESIDE = 1e-9  # from a border, on either side of it


def classify(spectrum: Spectrum, thresholds: PhaseThresholds | None = None) -> PhaseReading:
    """The phase of a spectrum, how sure it is, and why.

    >>> classify(Spectrum.from_eigenvalues([1.0] * 10, shape=(20, 10))).explanation
    'M is below 64: too small to tell noise from structure.'
    """
    limits = thresholds or PhaseThresholds()
    refusal = _refusal(spectrum, limits)
    if refusal:
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, refusal)
    rank = spectrum.nonzero.size
    if _collapsed(spectrum, limits):
        count = spectrum.eigenvalues.size
        if spectrum.view == "difference":
            text = f"The change has rank {rank} of {count}: what was added is of low rank, or few rows have moved."
            return PhaseReading(Phase.UNCLASSIFIED, 0.0, text)
        share = rank / count
        text = f"{count - rank} of {count} eigenvalues are zero: the rank has collapsed to {share:.0%} of full."
        return PhaseReading(Phase.RANK_COLLAPSE, min(1.0, _to_other_rank(spectrum, limits)), text)
    bulk = spectrum.bulk
    if bulk is None:
        return PhaseReading(Phase.UNCLASSIFIED, 0.0, "Half of the eigenvalues of a slice are zero: it has no bulk.")
    evidence = _evidence(spectrum, bulk, limits)
    phase = _decide(evidence, limits)
    meaningful = _alpha_is_meaningful(spectrum, bulk, phase, limits)
    fit = spectrum.power_law
    return PhaseReading(
        phase=phase,
        confidence=0.0
        if phase is Phase.UNCLASSIFIED
        else min(_confidence(evidence, phase, limits), _to_other_rank(spectrum, limits)),
        explanation=_explain(phase, evidence, spectrum),
        alpha_is_meaningful=meaningful,
        over_regularized=meaningful and fit.alpha_high + 2 * fit.alpha_stderr < 2,
    )


def _refusal(spectrum: Spectrum, limits: PhaseThresholds) -> str:
    if spectrum.lambda_max == 0:
        return "All weights are zero."
    if spectrum.view == "lora-delta":
        return f"An adapter of rank {spectrum.m}: the phases are those of whole weights."
    if spectrum.m < limits.min_m:
        return f"M is below {limits.min_m}: too small to tell noise from structure."
    dead = _dead(spectrum)
    if dead / (dead + spectrum.n + spectrum.m) > limits.max_dead:
        return f"{dead} rows and columns are zero: too little of the layer is left."
    return ""


def _dead(spectrum: Spectrum) -> int:
    return 0 if spectrum.elements is None else spectrum.elements.zero_rows + spectrum.elements.zero_columns


def _collapsed(spectrum: Spectrum, limits: PhaseThresholds) -> bool:
    """Enough zeros, and a gulf between them and the rest: a very heavy tail has small eigenvalues, but no gulf."""
    return spectrum.nonzero.size < limits.min_rank * spectrum.eigenvalues.size and _gap(spectrum) < limits.zero_gap


def _gap(spectrum: Spectrum) -> float:
    """The median of the zero eigenvalues over that of the others; 0 where none is zero."""
    zeros = spectrum.eigenvalues[: spectrum.eigenvalues.size - spectrum.nonzero.size]
    return float(np.median(zeros)) / float(np.median(spectrum.nonzero)) if zeros.size else 0.0


def _evidence(spectrum: Spectrum, bulk: Bulk, limits: PhaseThresholds) -> _Evidence:
    fit = spectrum.power_law
    return _Evidence(
        soft_rank=bulk.soft_rank,
        spikes=bulk.n_spikes,
        few=max(limits.few_share * bulk.standardised.size, limits.few_spikes),
        many=limits.heavy_share * bulk.standardised.size,
        ks=bulk.ks,
        alpha=fit.alpha,
        tail_ks=fit.ks_distance * fit.n_tail**0.5,
        ratio=power_law_against_exponential(spectrum.eigenvalues, fit).ratio,
        reach=spike_reach(spectrum.by_slice, spectrum.n, bulk.spikes),
    )


def _decide(e: _Evidence, limits: PhaseThresholds) -> Phase:
    if e.spikes == 0:
        return Phase.RANDOM_LIKE if e.ks <= limits.random_ks else Phase.UNCLASSIFIED
    if e.soft_rank >= limits.bleeding_soft_rank:
        return Phase.BLEEDING_OUT
    if e.spikes <= e.few and e.ks <= limits.random_ks:
        return Phase.BULK_SPIKES
    heavy = (
        e.soft_rank < limits.heavy_soft_rank
        and (e.spikes >= e.many or e.soft_rank <= limits.far_soft_rank)
        and e.alpha < limits.heavy_alpha
        and e.tail_ks <= limits.heavy_ks
        and e.ratio > limits.heavy_ratio
    )
    return Phase.HEAVY_TAILED if heavy else Phase.BULK_DECAY


def _confidence(evidence: _Evidence, phase: Phase, limits: PhaseThresholds) -> float:
    """The distance to the nearest evidence of another phase, up to 1; that of a change is its largest part."""
    choices = {
        name: [(getattr(evidence, name), 0.0)] for name in ("soft_rank", "spikes", "ks", "alpha", "tail_ks", "ratio")
    }
    for name, value, distance in _across_borders(evidence, limits):
        if distance < 1:
            choices[name].append((value, distance))
    nearest = 1.0
    for chosen in itertools.product(*choices.values()):
        distance = max(part for _, part in chosen)
        values = dict(zip(choices, (value for value, _ in chosen), strict=True))
        if distance < nearest and _decide(evidence._replace(**values), limits) is not phase:
            nearest = distance
    return nearest


def _across_borders(e: _Evidence, limits: PhaseThresholds) -> Iterator[tuple[str, float, float]]:
    """(piece of evidence, a value beside a border, how far away that is) for all borders."""
    for name, border in (
        ("soft_rank", limits.bleeding_soft_rank),
        ("soft_rank", limits.heavy_soft_rank),
        ("soft_rank", limits.far_soft_rank),
        ("ks", limits.random_ks),
        ("alpha", limits.heavy_alpha),
        ("tail_ks", limits.heavy_ks),
        ("ratio", limits.heavy_ratio),
    ):
        value = getattr(e, name)
        if value >= border:
            yield name, border * (1 - _BESIDE), _distance(value, border)
        if value <= border:
            yield name, border * (1 + _BESIDE), _distance(value, border)
    for last in (math.floor(e.few), math.ceil(e.many) - 1):
        if last >= 1:
            yield "spikes", last + 1 if e.spikes <= last else last, _distance_of_count(e.spikes, last)
    yield "spikes", 0 if e.spikes else 1, _distance(e.reach, 1)


def _distance(value: float, border: float) -> float:
    """The logarithm of the factor between them, in units of ln 1.5."""
    if not (value > 0 and border > 0 and math.isfinite(value)):
        return math.inf
    return abs(math.log(value / border)) / _FAR


def _distance_of_count(count: float, last: int) -> float:
    """From the last count before a border, or the first behind it; none is infinitely far from any."""
    if count == 0:
        return math.inf
    return _distance(count, last if count <= last else last + 1)


def _to_other_rank(spectrum: Spectrum, limits: PhaseThresholds) -> float:
    """The distance to the border of rank collapse, from either side, or to where too little of a layer is left."""
    size, rank = spectrum.eigenvalues.size, spectrum.nonzero.size
    zeros = _distance_of_count(size - rank, size - math.ceil(limits.min_rank * size))
    gap = _distance(_gap(spectrum), limits.zero_gap)
    if _collapsed(spectrum, limits):
        collapse = min(zeros, gap)
    else:  # what is not so yet has to become so
        few_zeros, no_gulf = rank >= limits.min_rank * size, _gap(spectrum) >= limits.zero_gap
        collapse = max(zeros if few_zeros else 0.0, gap if no_gulf else 0.0)
    dead = _dead(spectrum)
    return min(collapse, _distance(dead / (dead + spectrum.n + spectrum.m), limits.max_dead))


def _alpha_is_meaningful(spectrum: Spectrum, bulk: Bulk, phase: Phase, limits: PhaseThresholds) -> bool:
    fit = spectrum.power_law
    return (
        phase in (Phase.BULK_SPIKES, Phase.BULK_DECAY, Phase.HEAVY_TAILED)
        and fit.n_tail >= limits.min_n_tail
        # Where all of the spectrum is a power law its tail may well go below any edge.
        and (phase is Phase.HEAVY_TAILED or bulk.n_spikes >= max(limits.min_spikes, limits.tail_spikes * fit.n_tail))
        and fit.ks_distance <= limits.max_ks_distance
        and fit.alpha_high - fit.alpha_low <= limits.max_alpha_range
    )


def _explain(phase: Phase, e: _Evidence, spectrum: Spectrum) -> str:
    if phase is Phase.UNCLASSIFIED:
        return (
            f"No eigenvalue leaves the bulk, yet the bulk is not random (KS·M {e.ks:.1f}): "
            "orthogonal or rescaled weights look like this."
        )
    if phase is Phase.RANDOM_LIKE:
        return f"No eigenvalue stands above the bulk, and the bulk is that of noise (KS·M {e.ks:.1f})."
    times = 1 / e.soft_rank if e.soft_rank > 0 else math.inf
    stand = "eigenvalue stands" if e.spikes == 1 else "eigenvalues stand"
    text = f"λmax is {times:.3g} × the bulk edge; {e.spikes:.0f} {stand} above it"
    if phase is Phase.BULK_SPIKES:
        return f"{text}; the bulk is that of noise (KS·M {e.ks:.1f})."
    if phase is Phase.BLEEDING_OUT:
        return f"{text}, none of them far."
    tail = f"alpha {e.alpha:.2f} on {spectrum.power_law.n_tail} eigenvalues"
    if phase is Phase.HEAVY_TAILED:
        return f"{text}, as a power law: {tail}."
    why = "more than a few" if e.spikes > e.few else f"but the bulk is not that of noise (KS·M {e.ks:.1f})"
    return f"{text}, {why}; {tail}."
