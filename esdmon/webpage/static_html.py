"""Render the page as HTML without scripts: a map in SVG, current problems, alerts and last readings."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final, Self

from esdmon.records import Record, severity_word
from esdmon.records.colours import PHASE_HEX, STATUS_HEX
from esdmon.spectrum import Phase
from esdmon.webpage.codes import CHARACTERS
from esdmon.webpage.problems import firing

_LEGEND: Final = {
    **{CHARACTERS[phase.code]: (phase.value, PHASE_HEX[phase]) for phase in Phase},
    "N": ("NaN or infinity", STATUS_HEX["nonfinite"]),
    "Z": ("all zero, or too small", STATUS_HEX["degenerate"]),
    "F": ("reading failed", STATUS_HEX["failed"]),
    "S": ("skipped", STATUS_HEX["skipped"]),
}
"""Text and colour of each character of a row; `static/app.js` has the same."""
_LEFT, _WIDTH, _RIGHT, _TOP, _GAP = 230, 640, 110, 16, 6
_LEGIBLE = 11
"""Smallest height of a row at which its name fits."""


def static_html(runs: Sequence[tuple[str, Record]]) -> str:
    """Return the HTML of runs, from their names and overviews."""
    return '<div class="esd">' + "".join(_run(name, view) for name, view in runs) + "</div>"


def _run(name: str, view: Record) -> str:
    now = view["now"]
    items = "".join(
        f"<li><b>{escape(item['title'])}</b> {escape(item['text'])}{_list(item['lines'])}</li>" for item in now["items"]
    )
    alerts = "".join(f"<li>{_alert(alert)}{_list(alert.get('lines'))}</li>" for alert in reversed(view["alerts"]))
    title, level = escape(now["title"]), escape(now["level"])
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<section class="esd-now esd-{level}"><h2>{title}</h2><ul>{items}</ul></section>',
    ]
    if view["steps"]:
        parts += [_map(view), f"<h2>Alerts</h2><ul>{alerts or '<li>No alert has fired.</li>'}</ul>", _table(view)]
    return "".join(parts)


def _list(lines: Sequence[str] | None) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _alert(alert: Record) -> str:
    return escape(f"step {alert['step']}, {severity_word(alert['severity'])}, {alert['state']}: {alert['message']}")


@dataclass(frozen=True, slots=True)
class _Layout:
    """The positions of the rows and columns of a map."""

    row_height: int
    tops: dict[int, float]
    """Upper border of each row."""
    height: float
    places: list[float]
    """Left border of each column, and the right border of the last."""

    @classmethod
    def of(cls, view: Record) -> Self:
        steps = view["steps"]
        row_height = max(3, min(18, 560 // max(1, len(view["layers"]))))
        tops, y = {}, float(_TOP)
        for group in view["groups"]:
            for row in group["rows"]:
                tops[row] = y
                y += row_height
            y += _GAP
        end = steps[-1] + max(1, (steps[-1] - steps[0]) // max(1, len(steps) - 1))
        scale = _WIDTH / max(1, end - steps[0])
        return cls(row_height, tops, y, [_LEFT + scale * (step - steps[0]) for step in [*steps, end]])


def _map(view: Record) -> str:
    layout = _Layout.of(view)
    paths = _paths(view, layout)
    shapes = "".join(f'<path fill="{_LEGEND[code][1]}" d="{path}"/>' for code, path in paths.items() if code in _LEGEND)
    height, width = layout.height + 16, _LEFT + _WIDTH + _RIGHT
    swatch = '<svg width="12" height="12" role="presentation"><rect width="12" height="12" fill="{}"/></svg> {}&emsp;'
    legend = "".join(
        swatch.format(_LEGEND[code][1], escape(_LEGEND[code][0])) for code in sorted(paths) if code in _LEGEND
    )
    label = f"phases of {len(view['layers'])} layers by step"
    return (
        f"<p>{legend}</p>"
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" font-size="11" font-family="sans-serif" fill="currentColor">'
        f"{shapes}{_labels(view, layout)}{_axis(view, layout)}</svg>"
    )


def _paths(view: Record, layout: _Layout) -> dict[str, str]:
    """Return an SVG path for each phase, which covers all columns in that phase."""
    paths: dict[str, list[str]] = {}
    for row, y in layout.tops.items():
        start = 0
        for code, stretch in groupby(view["rows"][row]):
            end = start + len(list(stretch))
            left, width = layout.places[start], layout.places[end] - layout.places[start]
            paths.setdefault(code, []).append(f"M{left:.1f} {y:.0f}h{width:.1f}v{layout.row_height}h-{width:.1f}z")
            start = end
    return {code: "".join(found) for code, found in paths.items()}


def _labels(view: Record, layout: _Layout) -> str:
    """Return labels with name and last phase of rows; if rows are too low, only for kinds and for rows with alerts."""
    alerted = {name for alert in firing(view["alerts"]) for name in alert["layers"]}
    right, texts = _LEFT + _WIDTH + 8, []
    is_legible = layout.row_height >= _LEGIBLE
    for group in view["groups"]:
        rows = group["rows"]
        names = {row: view["layers"][row]["name"] for row in rows}
        if is_legible:
            for row, name in names.items():
                y = layout.tops[row] + layout.row_height - 4
                mark = "● " if name in alerted else ""
                texts.append(_text(_LEFT - 8, y, mark + name[-34:], "end"))
                texts.append(_text(right, y, _LEGEND.get(view["rows"][row][-1:], ("",))[0], "start"))
        else:
            y = layout.tops[rows[0]] + layout.row_height * len(rows) / 2 + 4
            texts.append(_text(_LEFT - 8, y, group["kind"][-34:] or f"{len(rows)} others", "end"))
            count = sum(name in alerted for name in names.values())
            if count:
                texts.append(_text(right, y, f"● {count} of {len(rows)}", "start"))
    return "".join(texts)


def _axis(view: Record, layout: _Layout) -> str:
    steps, y = view["steps"], layout.height + 8
    ends = _text(_LEFT, y, f"step {steps[0]}", "start") + _text(_LEFT + _WIDTH, y, f"step {steps[-1]}", "end")
    scale = (layout.places[-2] - _LEFT) / max(1, steps[-1] - steps[0])
    begun = [alert["step"] for alert in view["alerts"] if alert["state"] == "firing"]
    marks = [_text(_LEFT + scale * (step - steps[0]), _TOP - 4, "▼", "middle") for step in begun]
    return ends + "".join(marks)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _table(view: Record) -> str:
    rows = []
    for group in view["groups"]:
        for row in group["rows"]:
            layer = view["layers"][row]
            last = view["last"].get(layer["name"], {})
            shape = f"{layer['N']} × {layer['M']}" if layer["M"] else "–"
            alpha = _with_error(last.get("alpha"), last.get("alpha_stderr"))
            cells = [
                shape,
                _LEGEND.get(view["rows"][row][-1], ("not read yet",))[0],
                alpha if last.get("alpha_is_meaningful") or alpha == "–" else f"({alpha})",
                *(_number(last.get(name)) for name in ("mp_soft_rank", "n_spikes", "stable_rank")),
                str(last.get("step", "–")),
            ]
            rows.append(
                f"<tr><th>{escape(layer['name'])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
            )
    names = ("layer", "N × M", "phase", "alpha", "soft rank", "spikes", "stable rank", "read at step")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    return f'<h2>Last readings</h2><div class="esd-table">{table}</div>'


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) if value is None or error is None else f"{value:.2f} ± {error:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
