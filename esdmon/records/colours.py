"""Define the colours of phases and severities in HTML and plots, legible on a white page and on a dark one."""

from collections.abc import Mapping
from typing import Final

from esdmon.spectrum import Phase

PHASE_HEX: Final[Mapping[Phase, str]] = {
    Phase.RANDOM_LIKE: "#7f8fa9",
    Phase.BLEEDING_OUT: "#2aa1b3",
    Phase.BULK_SPIKES: "#3b7dd8",
    Phase.BULK_DECAY: "#a562d6",
    Phase.HEAVY_TAILED: "#2e9e5b",
    Phase.RANK_COLLAPSE: "#d8433b",
    Phase.UNCLASSIFIED: "#b0b0b0",
}
"""The hues are those of the terminal, `esdmon.present.colours`."""

STATUS_HEX: Final[Mapping[str, str]] = {
    "nonfinite": "#111111",
    "degenerate": "#6b5b4b",
    "failed": "#6b2b4b",
    "skipped": "#dfe3e8",
}
"""The statuses without a phase."""

SEVERITY_HEX: Final[Mapping[str, str]] = {
    "info": "#7f8fa9",
    "warning": "#c98a00",
    "error": "#d8433b",
    "critical": "#b02a8f",
}
