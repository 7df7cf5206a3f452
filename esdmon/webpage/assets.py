"""Load the script and the style sheet of the page, which are files of the package."""

from importlib.resources import files
from typing import Final

_SCRIPTS: Final = ("app.js", "map.js", "charts.js", "parts.js", "page.js")


def script() -> str:
    """Return the page's script: one text without imports, that defines `mount`, `httpSource` and `embeddedSource`."""
    return "\n".join(_read(name) for name in _SCRIPTS)


def style() -> str:
    """Return the page's style sheet."""
    return _read("app.css")


def _read(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")
