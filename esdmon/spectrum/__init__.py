"""The spectral core: from a `Spectrum` to numbers. It imports no torch and does no I/O or logging.

numpy does all that a reading needs; scipy's optimiser serves comparisons that are made on request. scipy.linalg appears
in `lapack` only, which is for processes that do nothing else: its LAPACK wrappers hold the interpreter lock for the
whole of a solve, which would stall training when a background thread runs them.

X = WᵀW/N of an N × M matrix W, N >= M, Q = N/M; λ are the eigenvalues of X, ascending; σ² is the variance of the bulk,
λ⁺ its edge. "of X" in the last column means: in units of X, the square of those of W. NaN is undefined.

===================== ====================================================================== ======================
measure               definition                                                             unit, range
===================== ====================================================================== ======================
alpha                 exponent of the power-law tail p(λ) ~ λ^(−alpha), λ >= xmin            > 1
alpha_stderr          its standard error, (alpha − 1)/√n_tail                                > 0
alpha_low             smallest alpha of the fits with a KS distance within 10 % of the best  > 1
alpha_high            largest alpha of those fits                                            > 1
xmin                  smallest eigenvalue of the tail                                        of X, > 0
ks_distance           Kolmogorov-Smirnov distance of the tail from the fit                   0 to 1
n_tail                eigenvalues in the tail                                                count; 0 without one
hill_alpha            1 + k/Σ ln(λ/λ_med) over the k largest, k half of those above 0        > 1
alpha_hat             alpha·log₁₀ λmax(WᵀW)                                                  any
log_alpha_norm        log₁₀ Σ λ(WᵀW)^alpha                                                   any
lambda_max            largest eigenvalue                                                     of X, >= 0
spectral_norm         ‖W‖₂ = √(N·λmax)                                                       of W, >= 0
frobenius_norm        ‖W‖_F = √(N·Σλ)                                                        of W, >= 0
stable_rank           Σλ/λmax                                                                1 to M
mp_soft_rank          min(1, λ⁺/λmax); NaN without a bulk of noise                           0 to 1; 1 for noise
hard_rank             eigenvalues above the zero tolerance of the dtype                      count, 0 to M
matrix_entropy        −Σ p ln p / ln M, p = λ/Σλ                                             0 to 1
effective_rank        exp(−Σ p ln p), p = σ/Σσ of the singular values σ                      1 to M
nuclear_norm          ‖W‖_* = Σσ                                                             of W, >= 0
sigma_min             smallest σ; 0 without full rank, NaN where float32 does not resolve it of W, >= 0
condition_number      σmax/σmin; NaN where σmin is 0 or not known                            >= 1
spectral_gap          σ₁/σ₂, of the two largest                                              >= 1
snr                   Σλ of the spikes over Σλ of the others; NaN without a bulk of noise    >= 0; 0 for noise
spectral_distance     ½ Σ|p − p′|, p = σ/Σσ, from the last reading of a watched run          0 to 1
bulk_sigma            σ, the standard deviation of the elements that would make the bulk     of W, > 0
bulk_edge             λ⁺: σ²(1 + 1/√Q)², or the edge of noise with the scales of W           of X, > 0
bulk_ks               M times the KS distance of the bulk from the law of noise              > 0; noise below 6
n_spikes              eigenvalues above the Tracy-Widom cut for noise                        count; 0 for noise
erg_rank              largest number of top eigenvalues with Σ ln λ >= 0, at mean λ = 1      count
erg_gap               xmin minus the smallest of those eigenvalues, at mean λ = 1            any; ideal 0
trap                  larger of |mean|/σ_w·(NM)^¼ and max|w − mean|/σ_w/(NM)^¼, elements w   >= 0; noise below 1
trap_is_local         1 if single elements make the trap, 0 if the mean does; these: if trap > 1 0 or 1
trap_mean             mean/σ of the elements w                                               any
trap_count            elements with |w − mean| > (NM)^¼·σ                                    count
trap_row              row of the one that is farthest from the mean, from 0                  index
trap_column           its column                                                             index
trap_value            its value                                                              of W
trap_share            share of Σw² in these elements and in the mean                         0 to 1
zero_rows             rows that are zero or have an rms below 1e-3 of the median row's       count
zero_columns          columns of that kind                                                   count
weak_rows             other rows with an rms below a tenth of the median row's               count
weak_columns          columns of that kind                                                   count
hill_alpha_min        smallest hill_alpha of a single expert; these: of pooled experts only  > 1
hill_alpha_max        largest hill_alpha of a single expert                                  > 1
stable_rank_min       smallest stable_rank of a single expert                                1 to M
stable_rank_max       largest stable_rank of a single expert                                 1 to M
spectral_norm_min     smallest spectral_norm of a single expert                              of W, >= 0
spectral_norm_max     largest spectral_norm of a single expert, which is the pool's          of W, >= 0
frobenius_norm_min    smallest frobenius_norm of a single expert                             of W, >= 0
frobenius_norm_max    largest frobenius_norm of a single expert                              of W, >= 0
rank_use              stable_rank/r, of the ΔW of an adapter of rank r only                  1/r to 1
base_ratio            ‖ΔW‖₂/‖W‖₂, of the ΔW of an adapter and its base                        >= 0
logit_bound           spectral_norm/√d, of the product of q and k in heads of size d         >= 0
sparsity              share of zero elements outside dead rows and columns                   0 to 1
trap_spikes           n_spikes after shuffling the elements; on request                      count; 0 without traps
equalised_spikes      n_spikes after scaling rows and columns to equal rms; on request       count; 0 for noise
equalised_alpha       alpha after it; on request                                             > 1
equalised_soft_rank   mp_soft_rank after it; on request                                      0 to 1; 1 for noise
intruders             of the 10 strongest directions, those far from all of W₀; on request   0 to 10; 0 is as before
reference_overlap     share of the space of the 10 strongest in that of W₀; on request       0 to 1; 1 is as before
subspace_overlap      the same with the last reading; on request                             0 to 1; 1 is as before
farms_alpha           hill_alpha of the pooled eigenvalues of M × M windows; on request      > 1; 2.1 for noise
localization_bulk     ‖v‖₁/‖v‖_∞, mean over the vectors v of the bulk; on request            1 to M
localization_spikes   the mean over the vectors of the spikes; on request                    1 to M
participation_bulk    ‖v‖₂/‖v‖₄, mean over the vectors of the bulk; on request               1 to M^¼
participation_spikes  the mean over the vectors of the spikes; on request                    1 to M^¼
vector_entropy_bulk   entropy of a 100-bin histogram of v, mean over the bulk; on request    nats, 0 to ln 100
vector_entropy_spikes the mean over the vectors of the spikes; on request                    nats, 0 to ln 100
===================== ====================================================================== ======================

A convolution pools the eigenvalues of its k slices: the upper limits of `stable_rank`, `effective_rank` and `hard_rank`
are then k·M.
"""

from esdmon.spectrum.benaych2012 import spike_strengths as spike_strengths
from esdmon.spectrum.bootstrap import goodness_of_fit as goodness_of_fit
from esdmon.spectrum.bulk import Bulk as Bulk
from esdmon.spectrum.bulk import fit_bulk as fit_bulk
from esdmon.spectrum.classification import classify as classify
from esdmon.spectrum.clauset2009 import PowerLawFit as PowerLawFit
from esdmon.spectrum.clauset2009 import fit_power_law as fit_power_law
from esdmon.spectrum.elements import Elements as Elements
from esdmon.spectrum.marchenko1967 import mp_cdf as mp_cdf
from esdmon.spectrum.marchenko1967 import mp_density as mp_density
from esdmon.spectrum.marchenko1967 import mp_edges as mp_edges
from esdmon.spectrum.marchenko1967 import mp_quantile as mp_quantile
from esdmon.spectrum.measures import Measure as Measure
from esdmon.spectrum.phases import Phase as Phase
from esdmon.spectrum.phases import PhaseReading as PhaseReading
from esdmon.spectrum.phases import PhaseThresholds as PhaseThresholds
from esdmon.spectrum.spectrum import Spectrum as Spectrum
from esdmon.spectrum.vuong1989 import Comparison as Comparison
from esdmon.spectrum.vuong1989 import power_law_against_exponential as power_law_against_exponential
from esdmon.spectrum.vuong1989 import power_law_against_lognormal as power_law_against_lognormal
from esdmon.spectrum.vuong1989 import power_law_against_truncated as power_law_against_truncated
