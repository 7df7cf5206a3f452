"""Keep, for each rule and layer, the step of the last check without a finding: a fault began after that step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import final

from esdmon.alerts.rule import Finding
from esdmon.records.serialization import Plain, known


@final
class ClearChecks:
    """Steps of the last checks without a finding, by layer and rule."""

    def __init__(self) -> None:
        self._steps: dict[str, dict[str, int]] = {}
        """Steps by layer, then by rule."""

    def take(self, rule: str, found: Mapping[str, Finding], checked: Iterable[str], step: int) -> None:
        """Add the checks of a rule in a report. `found` has all findings, including those that another rule mutes."""
        for name in checked:
            if name not in found:
                self._steps.setdefault(name, {})[rule] = step

    def last(self, rule: str, name: str) -> int | None:
        """Return the step of the last check of a layer without a finding; None if there was none."""
        return self._steps.get(name, {}).get(rule)

    def forget(self, name: str) -> None:
        """Remove a layer that the model no longer has."""
        self._steps.pop(name, None)

    def state_dict(self) -> Plain:
        """Return the steps as plain data: for each layer a list, in the order of `rules`."""
        rules = list(dict.fromkeys(rule for steps in self._steps.values() for rule in steps))
        return {
            "rules": rules,
            "layers": {name: [steps.get(rule) for rule in rules] for name, steps in self._steps.items()},
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse a `state_dict()` and return a function that restores it."""
        state = known(state, ("rules", "layers"))
        steps = {
            name: {rule: int(step) for rule, step in zip(state["rules"], row, strict=True) if step is not None}
            for name, row in state["layers"].items()
        }

        def restore() -> None:
            self._steps = steps

        return restore
