"""Look up the version of esdmon that is in use."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version from the installed metadata; `0+source` for a source tree that is on the path only."""
    try:
        return version("esdmon")
    except PackageNotFoundError:
        return "0+source"
