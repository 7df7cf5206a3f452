"""Define `StepSample`: the change of a few elements of a weight in one optimizer step."""

import math
from typing import NamedTuple


class StepSample(NamedTuple):
    """Norm and move of the sampled elements of one weight."""

    norm: float
    """Root of the sum of squares of the sampled elements, after the step."""
    ratio: float
    """‖ΔW‖/‖W‖ of the step; infinite for a weight that was zero."""
    growth: float = 0.0
    """Relative change of the norm by the step, negative if it shrinks."""
    shift: float = 0.0
    """‖ΔW‖/‖W‖ from the end of the last sample to the start of this step; 0 for a first sample."""
    start_ratio: float = math.nan
    """‖W − W₀‖ over the larger of ‖W‖ and ‖W₀‖, after the step; W₀ is the weight when it was first seen."""
    zero_gradient: float = math.nan
    """Share of the sampled elements of the gradient that are exactly zero; NaN if there is no gradient after the
    step."""
