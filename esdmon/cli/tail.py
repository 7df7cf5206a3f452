"""`esdmon tail`: follow a run in a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from esdmon.cli import live
from esdmon.notice import nearby
from esdmon.replay.files import find_file
from esdmon.replay.following import FollowedRun

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_CUT = "ends within compressed data: it is cut off, damaged, or still being written. Later lines are missing."
_POLL_SECONDS = 1.0
_STATUS_LINES = 3  # below the overview: a blank line, the file and its age, and the line of the cursor


def show(run: str, *, once: bool) -> None:
    """Print what is wrong in a run now and the table of its last reading; again at each new one, until Ctrl-C.

    Args:
        run: JSONL file of a run, or its folder.
        once: print once and return, as is done in any case where the output is not a terminal.

    Raises:
        InputError: without such a file, if it is not a JSONL of esdmon, and without rich.
    """
    console = live.console("scan")
    followed = FollowedRun(find_file(run))
    followed.update()
    if once or not console.is_terminal:
        console.print(_overview(followed, console))
        if followed.is_cut:
            console.print(f"{followed.path.name} {_CUT}", highlight=False, markup=False)
        return
    from rich.live import Live  # noqa: PLC0415 -- optional

    try:
        with Live(_view(followed, console), console=console, auto_refresh=False) as shown:
            while True:
                time.sleep(_POLL_SECONDS)
                followed.update()
                shown.update(_view(followed, console), refresh=True)
    except KeyboardInterrupt:  # the usual end
        return


def _view(followed: FollowedRun, console: Console) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 -- optional
    from rich.text import Text  # noqa: PLC0415

    path = followed.path
    cut = f" It {_CUT}" if followed.is_cut else ""
    status = f"{nearby(path.absolute())}, {_age(path)}.{cut} Ctrl-C ends."
    overview = _overview(followed, console, height=console.height - _STATUS_LINES)
    return Group(overview, "", Text(status, style="dim", overflow="ellipsis", no_wrap=True))


def _overview(followed: FollowedRun, console: Console, *, height: int | None = None) -> RenderableType:
    if followed.timeline.last is None:
        return f"no reading yet: {followed.nothing_read}. The first one is taken at the first due step (every=)."
    return live.overview(followed.timeline, width=console.width, height=height, from_start=followed.from_start)


def _age(path: Path) -> str:
    """Return how long ago a file was written."""
    try:
        seconds = max(0, int(time.time() - path.stat().st_mtime))
    except OSError:
        return "which does not exist now"
    if seconds < 120:
        return f"written {seconds} s ago"
    return f"written {seconds // 60} min ago" if seconds < 7200 else f"written {seconds // 3600} h ago"
