"""Messages that a user sees even if logging is not configured."""

import logging
import sys

_log = logging.getLogger("esdmon")


def notice(text: str) -> None:
    """Log a line at INFO, or print it on standard error if INFO is not shown, as by default.

    To silence it, set the logger `esdmon` to level ERROR.
    """
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info("esdmon: %s", text)
    elif _log.isEnabledFor(logging.WARNING) and sys.stderr is not None:
        print(f"esdmon: {text}", file=sys.stderr)
