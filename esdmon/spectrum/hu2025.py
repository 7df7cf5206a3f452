"""Compute FARMS, the Hill alpha of square windows, which is comparable between layers of different aspect ratios.

For noise the Hill alpha depends on N/M only: it is 2.1 for a square matrix and 10.6 at N = 64 M. So layers of different
shapes cannot be compared. FARMS pools the eigenvalues of submatrices of one aspect ratio, which can be.

Reference: Y. Hu, K. Goel, V. Killiakov, Y. Yang, "Eigenspectrum analysis of neural networks without aspect ratio bias",
ICML 2025 (https://arxiv.org/abs/2506.06280). The paper chooses size and stride of the windows freely. Here they are M ×
M, evenly spaced, and as few as cover the matrix, since the bias depends on the aspect ratio only.
"""

import math

from esdmon.spectrum.hill1975 import hill_alpha, hill_alpha_of_noise
from esdmon.spectrum.spectrum import Spectrum


def window_starts(n: int, m: int) -> list[int]:
    """Return where the ⌈N/M⌉ windows begin along the longer side: the first at 0, the last at N − M.

    >>> window_starts(10, 4)
    [0, 3, 6]
    """
    count = math.ceil(n / m)
    return [round(k * (n - m) / max(1, count - 1)) for k in range(count)]


def farms_alpha(spectrum: Spectrum) -> float:
    """Return the Hill alpha of the pooled eigenvalues of square windows, above 1; NaN if these were not computed.

    It is comparable between layers of different shapes; for noise it is 2.1 for every shape. Source: Y. Hu and others,
    ICML 2025 (https://arxiv.org/abs/2506.06280); the windows are the ⌈N/M⌉ of M × M that cover the matrix.
    """
    if spectrum.windows is None:
        return math.nan
    return hill_alpha(Spectrum.from_eigenvalues(spectrum.windows, shape=(spectrum.m, spectrum.m), dtype=spectrum.dtype))


def farms_alpha_null(_spectrum: Spectrum) -> float:
    """Return the Hill alpha of the Marchenko-Pastur law at Q = 1, whatever the shape: 2.1."""
    return hill_alpha_of_noise(1.0)
