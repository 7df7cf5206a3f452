"""Encode the phase or status of a reading as a small integer, and as one character in a row of the phase map."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase

NOT_READ: Final = -2
"""Code of a layer that was not read yet."""
STATUS_CODES: Final = {"nonfinite": -3, "degenerate": -4, "failed": -5, "skipped": -6}
"""Codes of readings without numbers, by status."""
CHARACTERS: Final[Mapping[int, str]] = {
    **{phase.code: str(phase.code) for phase in Phase},
    Phase.UNCLASSIFIED.code: "-",
    NOT_READ: ".",
    STATUS_CODES["nonfinite"]: "N",
    STATUS_CODES["degenerate"]: "Z",
    STATUS_CODES["failed"]: "F",
    STATUS_CODES["skipped"]: "S",
}
"""The character of each code."""


def code_of(layer: LayerReport) -> int:
    """Return the code of a reading: of its phase, 0 to 5 or -1; if it has no numbers, of its status."""
    return layer.phase.code if layer.status == "ok" else STATUS_CODES[layer.status]


def column_of(names: Iterable[str], report: Report) -> NDArray[np.int8]:
    """Return the codes of layers, in the order of their names, at a report."""
    codes = {layer.name: code_of(layer) for layer in report}
    return np.array([codes.get(name, NOT_READ) for name in names], dtype=np.int8)


def rows_of(codes: NDArray[np.int8]) -> list[str]:
    """Return a text for each layer, with one of `CHARACTERS` for each column, from codes of shape (columns, layers)."""
    known = sorted(CHARACTERS)
    table = np.array([ord(CHARACTERS[code]) for code in known], dtype=np.uint8)
    characters = table[np.clip(codes.astype(int) - known[0], 0, len(table) - 1)]
    return [row.tobytes().decode("ascii") for row in np.ascontiguousarray(characters.T)]
