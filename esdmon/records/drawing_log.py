"""Suppress what matplotlib logs at level DEBUG while a picture is drawn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHATTY = ("matplotlib", "matplotlib.font_manager", "matplotlib.pyplot")  # loggers
P = ParamSpec("P")
Drawn = TypeVar("Drawn", "Figure", "Axes")


@contextmanager
def without_debugging_lines() -> Iterator[bool]:
    """Suppress lines of level DEBUG in a block, and yield whether they would be shown.

    The first picture has about 80 lines for each font. Lines of other threads, in which the user draws, are not
    affected.
    """
    thread = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or threading.get_ident() != thread

    loggers = [logger for logger in map(logging.getLogger, _CHATTY) if logger.isEnabledFor(logging.DEBUG)]
    for logger in loggers:
        logger.addFilter(is_shown)
    try:
        yield bool(loggers)
    finally:
        for logger in loggers:
            logger.removeFilter(is_shown)


def with_fonts_found(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Return a function that makes a new figure whose fonts cause no lines, even when the user saves it later.

    Matplotlib looks for a font when text is drawn, with a line for each installed font, and keeps the result. Saving a
    figure with logarithmic axes wrote 2000 lines. So the figure is laid out here once if they would be shown.
    """

    @wraps(draw)
    def drawn(*given: P.args, **named: P.kwargs) -> Drawn:
        with without_debugging_lines() as are_shown:
            made = draw(*given, **named)
            if are_shown:
                figure: Any = made.figure  # of an axes, for mypy, perhaps a part of a figure
                figure.draw_without_rendering()
        return made

    return drawn
