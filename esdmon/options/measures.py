"""Resolve `measures=`: "default", "all", or names."""

from collections.abc import Mapping, Sequence

from esdmon.errors import InputError, as_list, nearest
from esdmon.spectrum import Measure


def choose_measures(measures: str | Sequence[str], known: Mapping[str, Measure]) -> tuple[Measure, ...]:
    """Return the measures that "default", "all" or a list of names stands for.

    Raises:
        InputError: for an unknown name.
    """
    if measures == "all":
        return tuple(known.values())
    if measures == "default":
        return tuple(measure for measure in known.values() if not measure.needs)
    names = as_list("measures", measures, "names of measures")
    for name in names:
        if name not in known:
            hint = nearest(str(name), known) or f" Available: {', '.join(known)}."
            raise InputError(f"unknown measure {name!r} in measures=.{hint}")
    return tuple(known[name] for name in names)
