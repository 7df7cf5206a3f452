"""Make the table of layers and phases that trackers with tables get at the end of a run."""

from collections.abc import Iterable

from esdmon.records import LayerReport

PHASE_COLUMNS = ("layer", "phase", "alpha", "alpha is meaningful", "MP soft rank", "step", "explanation")


def phase_rows(layers: Iterable[LayerReport]) -> list[list[str | float | bool | None]]:
    """Return a row for each layer; None for a measure that was not computed."""
    return [
        [
            layer.name,
            layer.shown_phase.value,
            layer.measures.get("alpha"),
            layer.alpha_is_meaningful,
            layer.measures.get("mp_soft_rank"),
            layer.step,
            layer.explanation or layer.reason,
        ]
        for layer in layers
    ]
