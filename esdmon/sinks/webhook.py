"""Alerts to a webhook, in the form that Slack takes, and Mattermost, Rocket.Chat and Discord's `/slack` with it."""

import json
import logging
import os
import queue
import socket
import threading
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from esdmon.errors import InputError
from esdmon.records import Alert, Report, Severity

_log = logging.getLogger("esdmon")
TIMEOUT = 10.0
"""Seconds that one attempt may take, and that closing waits for what is not sent yet."""
ATTEMPTS = 3
_PAUSE = 1.0  # seconds before the second attempt; twice as many before the third
_SLACK_COLOURS: dict[Severity, str] = {"info": "good", "warning": "warning", "error": "danger", "critical": "danger"}


@final
class WebhookSink:
    """Posts each alert, from a thread of its own; readings are not posted. The training never waits for it.

    The address is as good as a password: it stands in no message. Given as `$NAME` it is read from the environment.
    """

    def __init__(self, address: str, *, pause: float = _PAUSE) -> None:
        if address.startswith("$"):
            name, address = address[1:], os.environ.get(address[1:], "")
            if not address:
                raise InputError(f"webhook:${name}: the environment has no variable {name}")
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("webhook takes an address, 'webhook:https://…', or 'webhook:$NAME' for the environment's")
        self._address = address
        self._host = parts.hostname
        self._pause = pause
        self._queue: queue.Queue[Alert | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def write(self, report: Report) -> None:
        """Nothing."""

    def alert(self, alert: Alert) -> None:
        """Have it posted."""
        self._queue.put(alert)
        if self._thread is None:  # not before: most runs have no alert, and a fork would not have the thread
            self._thread = threading.Thread(target=self._post_all, name="esdmon-webhook", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Nothing: it posts as soon as it can."""

    def close(self) -> None:
        """Wait for what is not sent yet, ten seconds at most, and end the thread; what is lost is told in the log."""
        if self._thread is None:
            return
        until = time.monotonic() + TIMEOUT
        while self._queue.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)
        if self._queue.unfinished_tasks:
            _log.warning("esdmon: %d alerts were not sent to %s in time.", self._queue.unfinished_tasks, self._host)
        self._queue.put(None)

    def _post_all(self) -> None:
        while True:
            alert = self._queue.get()
            if alert is None:
                return
            try:
                self._post(alert)
            except Exception as error:  # noqa: BLE001 -- a thread has nobody to raise to
                _log.warning("esdmon: %s did not take an alert: %s. It was: %s", self._host, _why(error), alert.message)
            finally:
                self._queue.task_done()

    def _post(self, alert: Alert) -> None:
        body = json.dumps(payload(alert)).encode()
        request = Request(self._address, body, {"Content-Type": "application/json"})  # noqa: S310 -- http by __init__
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urlopen(request, timeout=TIMEOUT):  # noqa: S310
                    return
            except (OSError, HTTPException) as error:
                is_final = isinstance(error, HTTPError) and error.code < 500 and error.code != 429
                if is_final or attempt == ATTEMPTS:
                    raise
                time.sleep(self._pause * attempt)


def payload(alert: Alert) -> dict[str, Any]:
    """What is posted: a line of text, and the alert's fields beneath it."""
    fields = {
        "rule": alert.rule,
        "severity": alert.severity,
        "layers": ", ".join(alert.layers[:10]) + (" …" if len(alert.layers) > 10 else ""),
        "step": str(alert.step),
        "since step": str(alert.since),
        "run": f"{socket.gethostname()}:{Path.cwd()}",
    }
    return {
        "text": f"esdmon, {alert.severity}, {alert.state}: {alert.message}",
        "attachments": [
            {
                "color": _SLACK_COLOURS[alert.severity],
                "fields": [{"title": key, "value": value, "short": True} for key, value in fields.items() if value],
            }
        ],
    }


def _why(error: Exception) -> str:
    """What went wrong, without the address, which some errors repeat."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return f"{type(error).__name__} {getattr(getattr(error, 'reason', error), 'strerror', None) or ''}".rstrip()
