"""`Monitor`: when to read, and where the readings go. It computes nothing itself."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, final

from esdmon.alerts import AlertBook, AlertRule
from esdmon.faults import Fault, Faults, describe
from esdmon.records import Alert, LayerReport, Report
from esdmon.schedule import Schedule, never
from esdmon.sinks import Sink
from esdmon.state import Plain, Stateful, alert_from, layer_from, to_plain

_log = logging.getLogger("esdmon")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL}
_HISTORY = 64  # readings of a layer that rules may look back on
_SAVED = 8  # of those that go into a checkpoint: more than a built-in rule looks at, and small beside a model
_VERSION = 2


@final
class Monitor:
    """Counts optimizer steps and, at each that is due, passes a reading to the rules and the sinks.

    Made by `esdmon.watch`. Nothing that fails inside reaches the training loop, unless `faults.strict`.
    """

    def __init__(
        self,
        read: Callable[[int], Report],
        *,
        schedule: Schedule,
        sinks: Sequence[tuple[str, Sink]] = (),
        rules: Iterable[AlertRule] = (),
        on_alert: Callable[[Alert], None] | None = None,
        faults: Faults | None = None,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        self._read = read
        self._parts = dict(parts or {})
        self._schedule = schedule
        self._sinks = tuple(sinks)
        self._rules = tuple(rules)
        self._on_alert = on_alert
        self._faults = faults or Faults()
        self._history: dict[str, deque[LayerReport]] = {}
        self._book = AlertBook()
        self._at_close: list[Callable[[], None]] = []
        self._steps = 0
        self._closed = False
        self._report: Report | None = None
        self._alerts: list[Alert] = []

    @property
    def report(self) -> Report | None:
        """The last reading; None before the first."""
        return self._report

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """All alerts so far, the begun and the ended."""
        return tuple(self._alerts)

    @property
    def errors(self) -> tuple[Fault, ...]:
        """The parts that have failed, each with its last error and how often."""
        return tuple(self._faults)

    @property
    def steps(self) -> int:
        """Optimizer steps counted."""
        return self._steps

    def step(self) -> None:
        """Count a step, and read if it is due. The optimizer's hook calls it where `watch` was given an optimizer."""
        if self._closed:
            return
        self._steps += 1
        with self._faults.isolated("monitor", self._steps):
            if self._schedule(self._steps) and not self._faults.disabled("monitor"):
                self._take(self._read(self._steps))

    def flush(self) -> None:
        """Let what was written be seen by others."""
        self._to_sinks("flush")

    def close(self) -> None:
        """Remove the hooks and close the sinks; again is harmless."""
        if self._closed:
            return
        self._closed = True
        for undo in reversed(self._at_close):
            undo()
        self._tell_if_nothing_was_read()
        self._to_sinks("close")

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `undo` called by `close()`: how a host takes its hooks back."""
        self._at_close.append(undo)

    def state_dict(self) -> Plain:
        """What a resumed run needs to go on as if it had not stopped: steps, readings, alerts, and how weights were.

        Plain data and tensors, a few kB for each matrix: `torch.load` reads it with weights_only.
        """
        return {
            "version": _VERSION,
            "steps": self._steps,
            "history": {name: [to_plain(layer) for layer in list(h)[-_SAVED:]] for name, h in self._history.items()},
            "alerts": [to_plain(alert) for alert in self._alerts],
            "firing": [to_plain(alert) for alert in self._book.firing.values()],
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
        }

    def load_state_dict(self, state: object) -> None:
        """Go on from `state_dict()`; sinks that can are told to drop what was written after that step.

        Raises:
            ValueError: for what is no such state, or is that of another version; nothing is changed then.
        """
        steps = state.get("steps") if isinstance(state, Mapping) and state.get("version") == _VERSION else None
        if not isinstance(state, Mapping) or not isinstance(steps, int) or steps < 0:
            shown = sorted(map(str, state)) if isinstance(state, Mapping) else state
            msg = f"the state of a monitor has version {_VERSION} and a number of steps, got {shown!r}"
            raise ValueError(msg)
        try:
            history = {name: [layer_from(layer) for layer in layers] for name, layers in state["history"].items()}
            alerts, firing = ([alert_from(alert) for alert in state[key]] for key in ("alerts", "firing"))
            parts = {name: state["parts"][name] for name in self._parts}
        except (KeyError, TypeError, AttributeError) as error:
            msg = f"the state of a monitor is damaged: {describe(error)}"
            raise ValueError(msg) from error
        for name, part in self._parts.items():
            part.load_state_dict(parts[name])
        self._history = {name: deque(layers, maxlen=_HISTORY) for name, layers in history.items()}
        self._alerts = alerts
        self._book.firing = {alert.id: alert for alert in firing}
        self._steps = steps
        self._to_sinks("rewind", steps)

    def __enter__(self) -> Self:
        """The monitor; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, also when the loop raised."""
        self.close()

    def _tell_if_nothing_was_read(self) -> None:
        if self._schedule is never or self._report is not None or self._faults.disabled("monitor"):
            return
        if self._steps:
            _log.warning("esdmon: closed after %d steps without a reading: choose a smaller every=.", self._steps)
        else:
            _log.warning("esdmon: closed without a step: give watch() the optimizer, or call monitor.step().")

    def _take(self, report: Report) -> None:
        self._report = report
        for layer in report:
            self._history.setdefault(layer.name, deque(maxlen=_HISTORY)).append(layer)
        self._to_sinks("write", report)
        for alert in self._ask_rules(report.step):
            self._alerts.append(alert)
            _log.log(_LEVELS[alert.severity], "esdmon: %s", alert.message)
            self._to_sinks("alert", alert)
            if self._on_alert is not None:
                self._on_alert(alert)

    def _ask_rules(self, step: int) -> list[Alert]:
        found: list[Alert] = []
        asked: list[str] = []
        for rule in self._rules:
            who = f"rule {rule.name}"
            if not self._faults.disabled(who):
                with self._faults.isolated(who, step):
                    found += rule.find(self._history)
                    asked.append(rule.name)
        return self._book.update(found, rules=asked, step=step, time=time.time())

    def _to_sinks(self, method: str, *record: Report | Alert | int) -> None:
        for name, sink in self._sinks:
            who = f"sink {name}"
            if method == "rewind" and not hasattr(sink, method):
                continue  # most sinks of others cannot, and need not
            # A sink that was shut off is still closed: it may hold a file.
            if method == "close" or not self._faults.disabled(who):
                with self._faults.isolated(who, self._steps):
                    getattr(sink, method)(*record)
