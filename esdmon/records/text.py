"""The text of a report: its table, and the lines below it."""

import math
from collections.abc import Iterable, Sequence

from esdmon.errors import printable
from esdmon.records.layer import LayerReport
from esdmon.records.table import format_table
from esdmon.spectrum import Phase


def layer_table(layers: Sequence[LayerReport]) -> str:
    """Return a table of 80 columns, and lines on layers that are not ok, are unclassified, or look like noise."""
    rows = [_row(layer) for layer in layers]
    lines = [format_table(["layer", "N × M", "phase", "alpha", "soft rank", "spikes"], rows, left=(0, 2))]
    return "\n".join([*lines, *layer_notes(layers), *alpha_note(layers)])


def layer_notes(layers: Sequence[LayerReport]) -> list[str]:
    """Return lines on layers that are not ok, or unclassified."""
    ok = [layer for layer in layers if layer.status == "ok"]
    unclassified = ((layer.explanation, layer.name) for layer in ok if layer.shown_phase is Phase.UNCLASSIFIED)
    return [*grouped((layer.reason, layer.name) for layer in layers if layer.status != "ok"), *grouped(unclassified)]


def alpha_note(layers: Sequence[LayerReport]) -> list[str]:
    """Return a line on what parentheses around an alpha mean, where a table has any."""
    if all(layer.alpha_is_meaningful for layer in layers if layer.status == "ok"):
        return []
    return ["(alpha) in parentheses: no power-law tail that can be distinguished from noise"]


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
        printable(f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}")
        for reason, names in by_reason.items()
    ]


def show(layer: LayerReport, measure: str, form: str) -> str:
    """Return a measure in a format such as `.2f`; a dash if it is undefined or was not computed."""
    value = layer.measures.get(measure, math.nan)
    return format(value, form) if math.isfinite(value) else "–"


def shape_of(layer: LayerReport) -> str:
    """Return `N × M`, or `N × M × slices`; an empty text if that is not known."""
    if not layer.N:
        return ""
    return f"{layer.N} × {layer.M}" + (f" × {layer.slices}" if layer.slices > 1 else "")


def alpha_with_error(layer: LayerReport) -> str:
    """Return `alpha ± its standard error`, in parentheses where it is not meaningful."""
    alpha = f"{show(layer, 'alpha', '.2f')} ± {show(layer, 'alpha_stderr', '.2f')}"
    return f" {alpha} " if layer.alpha_is_meaningful else f"({alpha})"


def _row(layer: LayerReport) -> list[str]:
    if layer.status != "ok":
        return [layer.name, shape_of(layer), layer.status, "", "", ""]
    return [
        layer.name,
        shape_of(layer),
        layer.shown_phase.value,
        alpha_with_error(layer),
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
    ]
