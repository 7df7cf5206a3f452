"""Lines that a user is to see with all defaults."""

import logging
import sys

_log = logging.getLogger("esdmon")


def notice(text: str) -> None:
    """Log a line at INFO, or print it on standard error where INFO is not shown, as by default.

    The level ERROR of the logger `esdmon` silences it.
    """
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info("esdmon: %s", text)
    elif _log.isEnabledFor(logging.WARNING) and sys.stderr is not None:
        print(f"esdmon: {text}", file=sys.stderr)
