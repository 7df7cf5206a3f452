"""Describe the problems at the end of a run as text, from its alerts and the last reading of each layer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from esdmon.records import Record
from esdmon.records.text import count, named
from esdmon.records.timeline import SEVERITIES
from esdmon.webpage.codes import CHARACTERS, STATUS_CODES

_NOT_OK: Final = {
    CHARACTERS[STATUS_CODES["nonfinite"]]: "NaN or infinity in the weight",
    CHARACTERS[STATUS_CODES["failed"]]: "the reading failed",
}


def firing(alerts: Iterable[Record]) -> list[Record]:
    """Return the alerts that fire at the end, the most severe first, then in the order in which they began."""
    latest: dict[str, Record] = {}
    for alert in alerts:
        latest[alert["id"]] = alert
    open_ones = [alert for alert in latest.values() if alert["state"] == "firing"]
    return sorted(open_ones, key=lambda alert: (_rank(alert), alert["since"]))


def now(alerts: Sequence[Record], step: int | None, codes: Mapping[str, str]) -> Record:
    """Return a description of the problems at the end of a run, from its alerts and the last code of each layer.

    Returns:
        `level` (a severity, or `quiet`), `title`, and `items` with `layer`, `since`, `title`, `text` and `lines`, one
        for each of a few layers.
    """
    if step is None:
        return {"level": "quiet", "title": "No reading yet. The first one comes after every= steps.", "items": []}
    worst = firing(alerts)
    items = [
        {
            "layer": alert["layer"],
            "since": alert["since"],
            "severity": alert["severity"],
            "title": f"{_place(alert)}: {alert['rule'].replace('_', ' ')} since step {alert['since']}"
            + (", a notice" if alert["severity"] == "info" else ""),
            "text": _without_heading(alert),
            "lines": alert.get("lines", []),
        }
        for alert in worst
    ]
    alerted = {name for alert in worst for name in alert["layers"]}
    items += [
        {
            "layer": name,
            "since": step,
            "severity": "warning",
            "title": f"{name}: {_NOT_OK[code]} at step {step}",
            "text": "This layer has no numbers. The JSONL has the reason.",
            "lines": [],
        }
        for name, code in codes.items()
        if code in _NOT_OK and name not in alerted
    ]
    if not items:
        return {"level": "quiet", "title": _quiet(alerts, step), "items": []}
    serious = [item for item in items if item["severity"] != "info"]
    return {
        "level": min((item["severity"] for item in items), key=SEVERITIES.index),
        "title": f"{count(len(items), 'problem' if serious else 'notice')} now, at step {step}"
        + ("" if serious else "; no warning"),
        "items": items,
    }


def _quiet(alerts: Sequence[Record], step: int) -> str:
    fired = {alert["id"]: alert for alert in alerts}
    if not fired:
        return f"All quiet at step {step}: no alert has fired."
    last = max(fired.values(), key=lambda alert: alert["step"])
    return (
        f"All quiet at step {step}. {len(fired)} earlier {'alert is' if len(fired) == 1 else 'alerts are'} resolved; "
        f"the last was {last['rule'].replace('_', ' ')} of {_place(last)}, from step {last['since']} to {last['step']}."
    )


def _place(alert: Record) -> str:
    return named(alert["layers"], most=3) or "the whole run"


def _without_heading(alert: Record) -> str:
    """Return the message without the rule, and without the layers if the title names the same ones."""
    message = str(alert["message"])
    heading, found, text = message.partition(f"{alert['rule']}: ")
    if not found or len(heading) >= len(text):
        return message
    text = text[:1].upper() + text[1:]
    return text if heading in ("", f"{_place(alert)}: ") else f"{heading}{text}"


def _rank(alert: Record) -> int:
    return SEVERITIES.index(alert["severity"]) if alert["severity"] in SEVERITIES else len(SEVERITIES)
