"""The spectral core: a `Spectrum` in, numbers out. No torch, no files, no logging.

numpy does all that a reading needs; scipy's optimiser serves comparisons that are made on request. scipy.linalg must
not appear: its LAPACK wrappers hold the interpreter lock for the whole of a solve, which would stall training when a
background thread runs them.
"""

from esdmon.spectrum.benaych2012 import spike_strengths as spike_strengths
from esdmon.spectrum.bootstrap import goodness_of_fit as goodness_of_fit
from esdmon.spectrum.bulk import Bulk as Bulk
from esdmon.spectrum.bulk import fit_bulk as fit_bulk
from esdmon.spectrum.clauset2009 import PowerLawFit as PowerLawFit
from esdmon.spectrum.clauset2009 import fit_power_law as fit_power_law
from esdmon.spectrum.marchenko1967 import mp_cdf as mp_cdf
from esdmon.spectrum.marchenko1967 import mp_density as mp_density
from esdmon.spectrum.marchenko1967 import mp_edges as mp_edges
from esdmon.spectrum.marchenko1967 import mp_quantile as mp_quantile
from esdmon.spectrum.measures import Measure as Measure
from esdmon.spectrum.phases import Phase as Phase
from esdmon.spectrum.phases import PhaseReading as PhaseReading
from esdmon.spectrum.phases import PhaseThresholds as PhaseThresholds
from esdmon.spectrum.phases import classify as classify
from esdmon.spectrum.spectrum import Elements as Elements
from esdmon.spectrum.spectrum import Spectrum as Spectrum
from esdmon.spectrum.vuong1989 import Comparison as Comparison
from esdmon.spectrum.vuong1989 import power_law_against_exponential as power_law_against_exponential
from esdmon.spectrum.vuong1989 import power_law_against_lognormal as power_law_against_lognormal
from esdmon.spectrum.vuong1989 import power_law_against_truncated as power_law_against_truncated
