"""Define the 5+1 phases of training: names, borders between them, and the rules that choose one.

The phases are those of C. H. Martin, M. W. Mahoney, "Implicit self-regularization in deep neural networks: evidence
from random matrix theory and implications for learning", JMLR 22 (2021) 165 (https://arxiv.org/abs/1810.01075), §4:
shapes of a spectrum, ordered by the amount of structure that has left the random bulk. The paper defines them in words
and pictures; here the borders are numbers, and the same spectrum always has the same phase.

Differences from the paper, and choices that it leaves open: In the paper the elements of noise have one variance; here
rows and columns of noise have scales. The paper counts truncated power laws as heavy-tailed. At the sizes of layers no
likelihood ratio separates these from power laws, so a tail counts as a power law unless an exponential fits better.
Because of `heavy_alpha` the paper's InceptionV3 layers with alpha 4.5 and 5.3 are bulk-decay. Matrices of heavy-tailed
independent elements, the paper's model of the phase heavy-tailed, are heavy-tailed here too. They have a large `trap`,
which shows that single elements cause the tail.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from esdmon.calls import explain_wrong_calls
from esdmon.spectrum.bulk import CLEAN_KS, MAX_BULK_KS, MAX_SPIKE_SHARE, largest_bulk_ks
from esdmon.spectrum.spectrum import Spectrum

CRITICAL = 2.0
"""Alpha of the critical tail (SETOL)."""
_LONG_SOFT_RANK, _LONG_SHARE = 0.05, 0.05  # see `has_left_bulk`


class Phase(Enum):
    """The 5+1 phases, and `UNCLASSIFIED` if none can be assigned."""

    RANDOM_LIKE = "random-like"
    """Only a bulk of noise: nothing was learned yet."""
    BLEEDING_OUT = "bleeding-out"
    """Eigenvalues just above the edge of the bulk."""
    BULK_SPIKES = "bulk+spikes"
    """A clean bulk and a few eigenvalues well apart from it."""
    BULK_DECAY = "bulk-decay"
    """The edge has dissolved into a tail."""
    HEAVY_TAILED = "heavy-tailed"
    """A power law, without a clear edge of a bulk."""
    RANK_COLLAPSE = "rank-collapse"
    """A share of the eigenvalues is zero: over-regularised."""
    UNCLASSIFIED = "unclassified"
    """No phase; the explanation says why."""

    @property
    def code(self) -> int:
        """Return 0 to 5 in the order above, -1 for unclassified: the scalar that is logged."""
        return -1 if self is Phase.UNCLASSIFIED else list(Phase).index(self)


@explain_wrong_calls
@dataclass(frozen=True, slots=True)
class PhaseThresholds:
    """The borders between phases. R = λ⁺/λmax is the MP soft rank, k the number of spikes.

    The paper's batch-size figure labels R = 1.0 random-like, .92 bleeding-out, .74 to .80 bulk+spikes, .44 bulk-decay
    and <= .29 heavy-tailed. Its table has 1.3 to 4.8 % of the spectrum above the edge up to bulk+spikes, 9 % in
    bulk-decay and 13 % in heavy-tailed. Borders between these values are marked (figure) and (table). The other borders
    were set on the ensembles of tests/benchmarks/ensembles.py, or on half of the trained layers in tests/data, and are
    marked (ours); tests/benchmarks/confusion.py and trained.py show how often they are right on other data.
    """

    min_m: int = 32
    """Smallest M: at 32, 98 to 100 % of draws of noise are random-like, and a spike of 2.5 times the smallest visible
    strength is found in 95 % (ours)."""
    max_dead: float = 0.5
    """Largest share of dead rows, or of dead columns, of a layer with a phase (ours)."""
    min_rank: float = 0.95
    """Rank/M below which the rank has collapsed (ours)."""
    zero_gap: float = 1e-3
    """Median of the zero eigenvalues over the median of the others above which they form one long tail, not a collapse
    (ours)."""
    random_ks: float = CLEAN_KS
    """KS·M up to which a bulk without spikes has the law of noise: 99 % of draws of noise are below 4.5 (ours)."""
    clean_ks: float = CLEAN_KS
    """KS·M·√slices up to which a bulk below spikes is clean; for noise it falls with the number of pooled eigenvalues
    (ours)."""
    near_ks: float = 0.05
    """KS distance up to which a bulk, with or without spikes, is nearly clean: smaller distances are not visible in a
    picture (set on labelled layers of published networks). Measured scales scatter, so noise of very unequal scales has
    KS·M above 6 from M = 512 on."""
    near_edge_share: float = 0.25
    """Largest share of spikes within 1.25 λ⁺ (or one spike) at which a nearly clean bulk with few spikes counts as
    clean; with more, the edge dissolves (set on ensembles: 0 for spikes, .4 and more for decaying bulks)."""
    max_spike_share: float = MAX_SPIKE_SHARE
    """k/M above which there is no bulk of noise (table: at most .13; ours)."""
    max_bulk_ks: float = MAX_BULK_KS
    """KS distance of the bulk above which there is no bulk of noise (set on labelled layers of published networks)."""
    bleeding_soft_rank: float = 0.84
    """R at and above which eigenvalues above the edge are bleeding out (figure: between .80 and .92)."""
    few_share: float = 0.05
    """k/M up to which spikes are few (table: between .048 and .09)."""
    few_spikes: int = 13
    """k up to which spikes are few at any M; ten classes give 9 spikes, classes − 1 (table, and ours)."""
    heavy_soft_rank: float = 0.40
    """R below which a tail can be heavy (figure: between .29 and .44)."""
    heavy_share: float = 0.10
    """k/M from which a tail has no edge (table: between .09 and .13; set on trained layers)."""
    far_soft_rank: float = 0.20
    """R up to which λmax is far beyond the edge, so that a k/M of `far_share` suffices for a tail without an edge
    (figure: <= .29; ours)."""
    far_share: float = 0.05
    """k/M from which a tail with R up to `far_soft_rank` has no edge (table: 4.8 % is still bulk+spikes)."""
    heavy_alpha: float = 3.2
    """alpha below which a tail is heavy (set on ensembles, where 3.4 and more is bulk-decay, and on labelled layers of
    published networks; by this border the paper's InceptionV3 layers of 4.5 and 5.3 are bulk-decay)."""
    heavy_ks: float = 1.2
    """D·√n_tail up to which the power law is accepted: true Pareto tails are below .85 in 95 % (ours)."""
    heavy_ratio: float = 0.0
    """Vuong's ratio of power law to exponential above which the power law is kept (text: unless another law is
    significantly better)."""
    min_n_tail: int = 20
    """Smallest n_tail of an accepted power law and of a meaningful alpha (ours)."""
    min_spikes: int = 8
    """Smallest k of a meaningful alpha, unless heavy-tailed; the largest k in 64 908 draws of noise is 4 (ours)."""
    tail_spikes: float = 0.1
    """Smallest k/n_tail of a meaningful alpha, unless heavy-tailed: the tail must not lie in the bulk (ours)."""
    max_ks_distance: float = 0.10
    """Largest D of a meaningful alpha; on noise the median is .12 to .14 (ours)."""
    max_alpha_range: float = 1.0
    """Largest alpha_high − alpha_low of a meaningful alpha; on noise it is 5 to 20 (ours)."""


@dataclass(frozen=True, slots=True)
class PhaseReading:
    """A phase, its confidence and the evidence for it."""

    phase: Phase
    confidence: float
    """Distance of the evidence from the nearest border, from 0 (on a border) to 1 (a factor of 1.5 or more away).

    It is ln f/ln 1.5, where f is the smallest factor such that changing each piece of the evidence by at most f gives
    another phase. For a count, the last number before a border and the first number behind it are both on the border.
    Vuong's ratio is a standard score, so its difference from the border is used instead of a factor. The size of the
    matrix is not evidence. The confidence of `UNCLASSIFIED` is 0.
    """
    explanation: str
    """The evidence in one or two sentences, with its values."""
    alpha_is_meaningful: bool = False
    """True if alpha describes a tail rather than the edge of noise."""
    over_regularized: bool = False
    """True if alpha is meaningful and alpha_high + 2·alpha_stderr < 2, the alpha of the critical tail (SETOL).

    The tail must also extend beyond the bulk (`has_left_bulk`), must not be caused by single large elements in random
    order, and must be heavier than the critical tail beyond the edge of the bulk too."""


class Evidence(NamedTuple):
    """The values that decide a phase, and the borders between phases; letters as in `PhaseThresholds`.

    A tuple, since `confidence` creates many.
    """

    limits: PhaseThresholds
    soft_rank: float
    """R."""
    spikes: float
    """k."""
    size: int
    """Number of eigenvalues of all slices, which k/M refers to."""
    m: int
    """M of a slice."""
    share: float
    """Share of spikes that decides whether there is a bulk; see `Bulk.spike_share`."""
    ks: float
    """KS·M of the bulk."""
    alpha: float
    tail_ks: float
    """D·√n_tail of the power law."""
    ratio: float
    """Vuong's ratio of power law to exponential."""
    n_tail: float
    reach: float
    """(λmax − λ⁺)/(cut − λ⁺), see `spike_reach`: above 1 there is a spike. For noise it is near 0 or negative."""
    beside: float
    """Number of spikes within 1.25 λ⁺."""

    @property
    def has_bulk(self) -> bool:
        """Return whether there is a bulk of noise: few spikes lie above it, and its shape is nearly that of noise."""
        return self.share <= self.limits.max_spike_share and self.ks <= self.bulk_ks_limit

    @property
    def bulk_ks_limit(self) -> float:
        """Return KS·M above which there is no bulk of noise."""
        return largest_bulk_ks(self.m, clean_ks=self.limits.random_ks, max_ks=self.limits.max_bulk_ks)

    @property
    def clean_ks_limit(self) -> float:
        """Return KS·M up to which a bulk is clean."""
        return self.limits.clean_ks * (self.m / self.size) ** 0.5 if self.spikes else self.limits.random_ks

    @property
    def near_ks_limit(self) -> float:
        """Return KS·M up to which a bulk is nearly clean."""
        return max(self.clean_ks_limit, self.limits.near_ks * self.m)

    @property
    def accepts_power_law(self) -> bool:
        """Return whether the tail is a power law: it fits, no worse than an exponential, to enough eigenvalues."""
        fits = self.tail_ks <= self.limits.heavy_ks and self.ratio > self.limits.heavy_ratio
        return fits and self.n_tail >= self.limits.min_n_tail

    @property
    def few_spikes(self) -> float:
        """Return the largest k at which spikes are few."""
        return max(self.limits.few_share * self.size, self.limits.few_spikes)

    @property
    def few_beside(self) -> int:
        """Return the largest number of spikes near the edge at which the others count as separate from the bulk."""
        return max(1, int(self.limits.near_edge_share * self.spikes))


def is_collapsed(spectrum: Spectrum, limits: PhaseThresholds) -> bool:
    """Return True if enough eigenvalues are zero, with a gap to the rest; a very heavy tail has no such gap.

    Zeros do not count if noise with the scales of the layer has about as many, since rows may differ by factors of a
    thousand. The layer may have more by the share that a full rank may lack, or by the KS·M of a clean bulk.
    """
    size = spectrum.eigenvalues.size
    if spectrum.rank >= limits.min_rank * size or gap_of_zeros(spectrum) >= limits.zero_gap:
        return False
    noise = spectrum.scaled_noise if spectrum.noise_bulk is not None else None
    return noise is None or noise.rank - spectrum.rank > max((1 - limits.min_rank) * size, limits.random_ks)


def gap_of_zeros(spectrum: Spectrum) -> float:
    """Return the median of the zero eigenvalues over that of the others; 0 if none is zero."""
    zeros, others = np.split(spectrum.eigenvalues, [spectrum.eigenvalues.size - spectrum.rank])
    return float(np.median(zeros)) / float(np.median(others)) if zeros.size else 0.0


def dead_share(spectrum: Spectrum) -> float:
    """Return the share of rows, or of columns if it is larger, that were dead and dropped; 0 if it is not known."""
    elements = spectrum.elements
    if elements is None:
        return 0.0
    # If it is not known which side of W is the longer one, the smaller share is used.
    rows, columns = elements.rows or spectrum.n, elements.columns or spectrum.n
    dead_rows, dead_columns = elements.zero_rows, elements.zero_columns
    return max(dead_rows / (dead_rows + rows), dead_columns / (dead_columns + columns))


def has_left_bulk(phase: Phase, *, xmin: float, edge: float, soft_rank: float, share: float) -> bool:
    """Return whether a power-law tail extends beyond the bulk, which is a condition for over-regularised.

    It does in three cases: the layer is heavy-tailed; the tail begins at or above the edge of the bulk; or at least 5 %
    of the spectrum is above the edge and λmax is at least 20 times the edge. In the third case the tail extends for
    more than a decade beyond the bulk, although the fit begins within it. Our choice; in published networks shorter
    tails that begin within the bulk are caused by the scales of rows and columns.
    """
    is_long = soft_rank <= _LONG_SOFT_RANK and share >= _LONG_SHARE
    return phase is Phase.HEAVY_TAILED or xmin >= edge or is_long


def decide(e: Evidence) -> Phase:
    """Return the phase of a spectrum whose rank has not collapsed."""
    limits, is_clean, is_near = e.limits, e.ks <= e.clean_ks_limit, e.ks <= e.near_ks_limit
    if e.spikes == 0:
        return Phase.RANDOM_LIKE if is_near else Phase.UNCLASSIFIED
    is_heavy = e.alpha < limits.heavy_alpha and e.accepts_power_law
    if not e.has_bulk:
        return Phase.HEAVY_TAILED if is_heavy else Phase.UNCLASSIFIED
    if e.soft_rank >= limits.bleeding_soft_rank:
        return Phase.BLEEDING_OUT if is_near else Phase.UNCLASSIFIED
    is_far = e.soft_rank <= limits.far_soft_rank and e.spikes >= limits.far_share * e.size
    has_no_edge = e.soft_rank < limits.heavy_soft_rank and (e.spikes >= limits.heavy_share * e.size or is_far)
    if is_heavy and has_no_edge and not is_clean:
        return Phase.HEAVY_TAILED
    has_spikes = is_clean or (is_near and e.beside <= e.few_beside)
    return Phase.BULK_SPIKES if has_spikes and e.spikes <= e.few_spikes else Phase.BULK_DECAY
