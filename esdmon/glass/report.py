"""One self-contained HTML file of runs: the page of TensorBoard's tab, with its data inside.

Where scripts are switched off, as in mail or in Jenkins, the file shows a map, alerts and tables without them.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any, Final, NamedTuple

from esdmon.glass import assets
from esdmon.glass.run_data import MAX_COLUMNS, MAX_FRAMES, MAX_POINTS, RunData
from esdmon.glass.static_html import static_html
from esdmon.records import SCHEMA, Record

MAX_BYTES: Final = 5_000_000
"""Size of a report: what mail takes without complaint. Our choice."""
_START: Final = """
mount(document.getElementById('esdmon'),
  embeddedSource(JSON.parse(document.getElementById('esdmon-data').textContent)));
"""


class Detail(NamedTuple):
    """How much of each run is shown."""

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
        runs: with different names.
        max_bytes: size of the file. Where it does not suffice, steps and points are thinned first, then spectra are
            left out: those of layers with an alert or a change of phase are the last to go. The page says so.
    """
    script, style = assets.script() + _START, assets.style()
    body = static_html([(run.name, run.overview(_DETAILS[-1].columns)) for run in runs])
    room = max_bytes - len((script + style + body).encode()) - 2000
    data = _fitting(runs, room)
    policy = f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'"
    title = escape(", ".join(run.name for run in runs))
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
    """Return the data of the page, as much of it as a number of bytes allows."""
    for detail in _DETAILS:
        views = [_without_frames(run, detail) for run in runs]
        size = len(_json(views).encode())
        if size <= room * 0.6 or detail is _DETAILS[-1]:
            break
    notes = _thinned(runs, detail)
    left = room - size
    orders = [run.by_interest() for run in runs]
    for k in range(max(len(run.layers) for run in runs) if runs else 0):  # in turn, so that each run has its share
        for run, view, names in zip(runs, views, orders, strict=True):
            if k < len(names):
                found = run.frames(names[k], detail.frames)
                size = len(_json({names[k]: found}).encode())
                if found["steps"] and size <= left:
                    view["frames"][names[k]] = found
                    left -= size
                elif found["steps"]:
                    view["omitted"] += 1
    for view in views:
        if view["omitted"]:
            notes.append(
                f"{view['name']}: the spectra of {view['omitted']} of {len(view['overview']['layers'])} layers are "
                "left out, so that the file stays small. They are in the JSONL."
            )
    return _json({"schema": SCHEMA, "runs": views, "notes": notes})


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
    """Return notes on the runs of which not every reading is shown."""
    return [
        f"{run.name}: {run.readings} readings. The map shows at most {detail.columns} of them, those at changes of a "
        f"phase first; lines have at most {detail.points} points. The JSONL has all."
        for run in runs
        if run.readings > min(detail.columns, detail.points)
    ]


def _json(value: Any) -> str:
    """Return JSON without `<`, so that no text in it can end the element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
