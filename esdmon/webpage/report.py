"""Write one self-contained HTML file that shows runs: the page of TensorBoard's tab, with embedded data.

If scripts are switched off, as in mail or in Jenkins, the file shows a static map, alerts and tables.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from esdmon.encoding import storable
from esdmon.records import SCHEMA, Record
from esdmon.webpage import assets
from esdmon.webpage.run_data import MAX_COLUMNS, MAX_FRAMES, MAX_POINTS, RunData
from esdmon.webpage.static_html import static_html

MAX_BYTES: Final = 5_000_000
"""Largest size of a report in bytes, which mail servers accept. Our choice."""
_SHARE_WITHOUT_FRAMES: Final = 0.6
"""Share of the file that maps and lines may take; the rest is for spectra. Our choice."""
_START: Final = """
mount(document.getElementById('esdmon'),
  embeddedSource(JSON.parse(document.getElementById('esdmon-data').textContent)));
"""


class Detail(NamedTuple):
    """Limits on the data that is shown of each run."""

    columns: int = MAX_COLUMNS
    points: int = MAX_POINTS
    frames: int = MAX_FRAMES


_DETAILS: Final = (
    Detail(),
    Detail(1000, 200, 24),
    Detail(600, 80, 12),
    Detail(400, 40, 6),
    Detail(200, 20, 3),
    Detail(100, 8, 2),
)


def html(runs: Sequence[RunData], *, max_bytes: int = MAX_BYTES) -> str:
    """Return a report of runs.

    Args:
        runs: the runs, with different names.
        max_bytes: largest size of the file. If the data does not fit, steps and points are thinned first, then spectra
            are omitted; spectra of layers with an alert or a change of phase are omitted last. The page shows a note on
            omitted data.
    """
    script, style = assets.script() + _START, assets.style()
    body = storable(static_html([(run.name, run.overview(_DETAILS[-1].columns)) for run in runs]))
    room = max_bytes - len((script + style + body).encode()) - 2000
    data = _fitting(runs, room)
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'"
    title = storable(escape(", ".join(run.name for run in runs)))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>esdmon: {title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<div id="esdmon">{body}</div>\n'
        f'<script type="application/json" id="esdmon-data">{data}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _fitting(runs: Sequence[RunData], room: int) -> str:
    """Return as much data of the page as fits into a number of bytes."""
    for detail in _DETAILS:
        views = [_without_frames(run, detail) for run in runs]
        size = len(_json(views).encode())
        if size <= room * _SHARE_WITHOUT_FRAMES:
            break
    _add_frames(runs, views, count=detail.frames, room=room - size)
    notes = _thinned(runs, detail)
    for view in views:
        if view["omitted"]:
            notes.append(
                f"{view['name']}: the spectra of {view['omitted']} of {len(view['overview']['layers'])} layers are "
                "left out, so that the file stays small. They are in the JSONL."
            )
    return _json({"schema": SCHEMA, "runs": views, "notes": notes})


def _add_frames(runs: Sequence[RunData], views: Sequence[Record], *, count: int, room: int) -> None:
    """Add to the views at most `count` spectra of each layer, and the number of layers that do not fit.

    The layers of most interest come first, alternating between the runs, so that each run gets its share.
    """
    for names in zip_longest(*(run.by_interest() for run in runs)):
        for run, view, name in zip(runs, views, names, strict=True):
            found = None if name is None else run.frames(name, count)
            if not found or not found["steps"]:  # another run has more layers, or this layer has no spectrum
                continue
            size = len(_json({name: found}).encode())
            if size <= room:
                view["frames"][name] = found
                room -= size
            else:
                view["omitted"] += 1


def _without_frames(run: RunData, detail: Detail) -> Record:
    lines = {layer.name: run.lines(layer.name, detail.points) for layer in run.layers}
    return {
        "name": run.name,
        "overview": run.overview(detail.columns),
        "lines": {name: found for name, found in lines.items() if found["steps"]},
        "frames": {},
        "omitted": 0,
    }


def _thinned(runs: Sequence[RunData], detail: Detail) -> list[str]:
    """Return notes on the runs with readings that are not shown."""
    return [
        f"{run.name}: {run.readings} readings. The map shows at most {detail.columns} of them, those at changes of a "
        f"phase first; lines have at most {detail.points} points. The JSONL has all."
        for run in runs
        if run.readings > min(detail.columns, detail.points)
    ]


def _json(value: Any) -> str:
    """Return JSON without `<`, so that no text in it can end the surrounding HTML element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return storable(text).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
