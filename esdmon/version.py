"""Look up the version of esdmon that is in use."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def installed_version() -> str:
    """Return the version from the installed metadata; `0+source` for a source tree that is on the path only.

    The metadata are read once, when a monitor is made: later a checkpoint needs the version, and by then no file may be
    left to open.
    """
    try:
        return version("esdmon")
    except PackageNotFoundError:
        return "0+source"
