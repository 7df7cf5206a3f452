"""Define the colour of each phase, for the console and the demo."""

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
"""Names as `rich` uses them. White would be invisible on a light background, so a phase of pure noise is dim."""

_ANSI_CODES = {"dim": 2, "red": 31, "green": 32, "blue": 34, "magenta": 35, "cyan": 36, "bright_black": 90}


def coloured(phase: Phase, text: str) -> str:
    """Return a text in the colour of a phase, by an ANSI escape sequence."""
    return f"\x1b[{_ANSI_CODES[PHASE_COLOURS[phase]]}m{text}\x1b[0m"
