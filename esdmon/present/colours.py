"""The colour of each phase, the same wherever words are coloured: on the console and in the demo."""

from esdmon.spectrum import Phase

PHASE_COLOURS = {
    Phase.RANDOM_LIKE: "dim",
    Phase.BLEEDING_OUT: "cyan",
    Phase.BULK_SPIKES: "blue",
    Phase.BULK_DECAY: "magenta",
    Phase.HEAVY_TAILED: "green",
    Phase.RANK_COLLAPSE: "red",
    Phase.UNCLASSIFIED: "bright_black",
}
"""As rich names them. On a light ground white could not be read, so what is only noise is dim."""

_CODES = {"dim": 2, "red": 31, "green": 32, "blue": 34, "magenta": 35, "cyan": 36, "bright_black": 90}


def coloured(phase: Phase, text: str) -> str:
    """Return a text in the colour of a phase, for a terminal."""
    return f"\x1b[{_CODES[PHASE_COLOURS[phase]]}m{text}\x1b[0m"
