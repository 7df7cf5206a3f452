"""Log that a loaded state belongs to another model: its layers have other names or shapes."""

import logging
from collections.abc import Callable, Collection, Mapping

from esdmon.records import LayerReport
from esdmon.records.text import count, named

_MIN_MATCHING_SHARE = 0.5
"""Share of layers below which a state is taken to be another model's: of the layers that the state has readings of, or
of those that are read now, if these are fewer. Other `layers=` and an added adapter leave it at 1. Our choice."""

_log = logging.getLogger("esdmon")


def check_loaded(saved: Mapping[str, LayerReport], names: Collection[str], n_elements: Callable[[str], int]) -> None:
    """Compare the layers of a loaded state with those of the model, and log what does not match.

    Args:
        saved: the readings in the state.
        names: the matrices that are read now.
        n_elements: returns the number of elements of a matrix; 0 where it is not known.
    """
    comparable = min(len(saved), len(names))
    matching = {name for name in saved if name in names and _is_of(saved[name], n_elements(name))}
    if len(matching) == comparable:
        return
    others = named(name for name in saved if name not in matching)
    if len(matching) >= _MIN_MATCHING_SHARE * comparable:
        _log.info(
            "esdmon: %d of %s in the loaded state match this model by name and shape; not %s. Layers of other "
            "names begin at this step, and alerts of those that are gone end.",
            len(matching),
            count(len(saved), "layer"),
            others,
        )
        return
    _log.warning(
        "esdmon: the loaded state is that of another model: %d of its %s match this model by name and shape; not %s. "
        "Steps and alerts of that run are continued: layers of the same name and shape are compared with its readings, "
        "others begin at this step. Load the state that was saved with this model, or begin without one.",
        len(matching),
        count(len(saved), "layer"),
        others,
    )


def _is_of(layer: LayerReport, n_elements: int) -> bool:
    """Return whether a reading may be of a matrix of that size; True where either size is not known."""
    size = layer.n_parameters  # N × M is without dead rows and columns
    return not size or not n_elements or size == n_elements
