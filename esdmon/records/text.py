"""The text of a report: its table, and the lines below it."""

import math
from collections.abc import Iterable, Sequence

from esdmon.records.layer import LayerReport
from esdmon.records.table import format_table
from esdmon.spectrum import Phase


def layer_table(layers: Sequence[LayerReport]) -> str:
    """Return a table of 80 columns, and lines on layers that are not ok, are unclassified, or look like noise."""
    rows = [_row(layer) for layer in layers]
    lines = [format_table(["layer", "N × M", "phase", "alpha", "soft rank", "spikes"], rows, left=(0, 2))]
    lines += [f"{layer.name}: {layer.reason}" for layer in layers if layer.status != "ok"]
    ok = [layer for layer in layers if layer.status == "ok"]
    lines += grouped((layer.explanation, layer.name) for layer in ok if layer.shown_phase is Phase.UNCLASSIFIED)
    if any(not layer.alpha_is_meaningful for layer in ok):
        lines.append("(alpha) in parentheses: no power-law tail that can be distinguished from noise")
    return "\n".join(lines)


def age_lines(layers: Sequence[LayerReport], *, step: int, waiting: Sequence[str]) -> list[str]:
    """Return a line on readings from before `step`, and one on matrices that were not read yet."""
    old = [layer for layer in layers if layer.step != step]
    lines = []
    if old:
        oldest = min(layer.step for layer in old)
        unchanged = sum(layer.unchanged for layer in old)
        reasons = [f"{unchanged} unchanged since then"] if unchanged else []
        reasons += [f"{len(old) - unchanged} postponed by budget="] if len(old) > unchanged else []
        lines.append(f"{len(old)} of {len(layers)} read earlier, the oldest at step {oldest}: {', '.join(reasons)}")
    if waiting:
        more = f" and {len(waiting) - 2} more" if len(waiting) > 2 else ""
        lines.append(f"not read yet: {', '.join(waiting[:2])}{more}")
    return lines


def grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line `name, name and 3 more: reason` for each reason, from pairs (reason, name)."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in reasons:
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def show(layer: LayerReport, measure: str, form: str) -> str:
    """Return a measure in a format such as `.2f`; a dash if it is undefined or was not computed."""
    value = layer.measures.get(measure, math.nan)
    return format(value, form) if math.isfinite(value) else "–"


def _row(layer: LayerReport) -> list[str]:
    shape = f"{layer.N} × {layer.M}" + (f" × {layer.slices}" if layer.slices > 1 else "")
    if layer.status != "ok":
        return [layer.name, shape if layer.N else "", layer.status, "", "", ""]
    alpha = f"{show(layer, 'alpha', '.2f')} ± {show(layer, 'alpha_stderr', '.2f')}"
    return [
        layer.name,
        shape,
        layer.shown_phase.value,
        f" {alpha} " if layer.alpha_is_meaningful else f"({alpha})",
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
    ]
