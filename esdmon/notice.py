"""Show messages to the user even if logging is not configured."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

from esdmon.encoding import encodable

_log = logging.getLogger("esdmon")


def notice(text: str) -> None:
    """Log a line at INFO, or print it on standard error if INFO is not shown, as by default.

    Where standard error is closed or cannot be written, the line is lost.

    To silence it, set the logger `esdmon` to level ERROR.
    """
    if _log.isEnabledFor(logging.INFO) and _log.hasHandlers():
        _log.info("esdmon: %s", text)
    elif _log.isEnabledFor(logging.WARNING) and sys.stderr is not None:
        with suppress(OSError, ValueError):  # a full disk, a reader that has gone, a stream that is closed
            print(encodable(f"esdmon: {text}", getattr(sys.stderr, "encoding", None)), file=sys.stderr)


def nearby(path: Path) -> str:
    """Return a path as the user would type it: relative to the working directory if it is in there."""
    try:
        here = Path.cwd()
    except OSError:  # it was deleted
        return str(path)
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
