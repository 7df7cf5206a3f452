"""Say in words what makes a correlation trap."""

from esdmon.alerts.rule import measured
from esdmon.records import LayerReport


def what_traps(layer: LayerReport) -> str:
    """Return which elements make a trap, or that the mean does, with their share of Σw²."""
    if "trap_share" not in layer.measures:
        return "above 1 the mean or one huge element makes a spike in the spectrum"
    local, mean, count, row, column, value, share = measured(
        layer, *(f"trap_{field}" for field in ("is_local", "mean", "count", "row", "column", "value", "share"))
    )
    if not local:
        return f"diffuse: the mean is {mean:.2g} standard deviations, {share:.0%} of the squares"
    others = f" and {count - 1:.0f} others" if count > 1 else ""
    return f"local: {value:.3g} in row {row:.0f}, column {column:.0f}{others}, {share:.0%} of the squares"
