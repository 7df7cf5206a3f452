"""Define the array types of the spectral core, and the precision of stored weights."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.intp]

EPS = {
    "float64": float(np.finfo(np.float64).eps),
    "float32": float(np.finfo(np.float32).eps),
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}
"""Machine epsilon of the types in which weights are stored."""
