"""Post alerts to a webhook, in the format of Slack, Mattermost, Rocket.Chat and Discord's `/slack`."""

import json
import logging
import os
import queue
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError
from esdmon.records import Alert, Report, Severity, severity_word
from esdmon.records.text import count

_log = logging.getLogger("esdmon")
TIMEOUT = 10.0
"""Seconds after which an attempt fails, and for which `close` waits for alerts not yet sent. Our choice."""
ATTEMPTS = 3
"""Largest number of attempts to post an alert. Our choice."""
RETRY_PAUSE = 1.0
"""Seconds before the second attempt; twice as many before the third. Our choice."""
_MAX_LAYERS = 10  # names in the field `layers` of a message
_ATTACHMENT_COLOURS: dict[Severity, str] = {
    "info": "good",
    "warning": "warning",
    "error": "danger",
    "critical": "danger",
}


@explain_wrong_calls
@final
class WebhookSink:
    """Post each alert from a separate thread; reports are not posted. Training does not wait for it.

    Args:
        address: an http or https address, or `$NAME` for an address in an environment variable. Anyone who has the
            address can post, so no message contains it.
        retry_pause: seconds before the second attempt; twice as many before the third.
        timeout: seconds for one attempt, and for `close`.

    Raises:
        InputError: for an invalid address, and for an environment variable that is not set.
    """

    def __init__(self, address: str, *, retry_pause: float = RETRY_PAUSE, timeout: float = TIMEOUT) -> None:
        if address.startswith("$"):
            name, address = address[1:], os.environ.get(address[1:], "")
            if not address:
                raise InputError(f"webhook:${name}: the environment has no variable {name}. Set it, or check its name.")
        self._address = address.strip()  # a variable that is filled from a file ends with its line
        self._host = _host_of(self._address)
        self._retry_pause = retry_pause
        self._timeout = timeout
        self._queue: queue.Queue[Alert | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def write(self, report: Report) -> None:
        """Do nothing: only alerts are posted."""

    def alert(self, alert: Alert) -> None:
        """Queue an alert for posting."""
        self._queue.put(alert)
        if self._thread is None:  # not at construction: most runs have no alert, and a fork would lose it
            self._thread = threading.Thread(target=self._post_all, name="esdmon-webhook", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Do nothing: alerts are posted as soon as possible."""

    def close(self) -> None:
        """Wait for alerts to be sent, until the timeout; end the thread, and log how many alerts were not sent."""
        if self._thread is None:
            return
        deadline = time.monotonic() + self._timeout
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._queue.unfinished_tasks:
            _log.warning(
                "esdmon: %s not sent to %s within %g s, and in this log only. Check the webhook.",
                count(self._queue.unfinished_tasks, "alert"),
                self._host,
                self._timeout,
            )
        self._queue.put(None)

    def _post_all(self) -> None:
        while True:
            alert = self._queue.get()
            if alert is None:
                return
            try:
                self._post(alert)
            except Exception as error:  # noqa: BLE001 -- nothing would catch it in a thread
                _log.warning(
                    "esdmon: posting an alert to %s failed: %s. The alert was: %s",
                    self._host,
                    _describe(error),
                    alert.message,
                )
            finally:
                self._queue.task_done()

    def _post(self, alert: Alert) -> None:
        body = json.dumps(payload(alert)).encode()
        request = Request(self._address, body, {"Content-Type": "application/json"})  # noqa: S310 -- http by __init__
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urlopen(request, timeout=self._timeout):  # noqa: S310
                    return
            except (OSError, HTTPException) as error:
                is_final = isinstance(error, HTTPError) and error.code < 500 and error.code != 429
                if is_final or attempt == ATTEMPTS:
                    raise
                time.sleep(self._retry_pause * attempt)


def payload(alert: Alert) -> dict[str, Any]:
    """Return the JSON object to post: a line of text, and an attachment with the fields of the alert."""
    more = " …" if len(alert.layers) > _MAX_LAYERS else ""
    fields = {
        "rule": alert.rule,
        "severity": severity_word(alert.severity),
        "layers": ", ".join(alert.layers[:_MAX_LAYERS]) + more,
        "step": str(alert.step),
        "since step": str(alert.since),
        "run": f"{socket.gethostname()}:{_working_directory()}",
    }
    return {
        "text": f"esdmon, {severity_word(alert.severity)}, {alert.state}: {alert.message}",
        "attachments": [
            {
                "color": _ATTACHMENT_COLOURS[alert.severity],
                "fields": [{"title": key, "value": value, "short": True} for key, value in fields.items() if value],
            }
        ],
    }


def _host_of(address: str) -> str:
    """Return the host of an address.

    Raises:
        InputError: for an address that cannot be posted to; the message does not contain it.
    """
    with suppress(ValueError):  # of a port that is too large or not a number, and of brackets that are not closed
        parts = urlsplit(address)
        is_plain = address.isascii() and address.isprintable() and " " not in address
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and is_plain:
            return parts.hostname
    raise InputError(
        "webhook takes an address, 'webhook:https://…', or a variable with one, 'webhook:$NAME'; it has no spaces, and "
        "letters beyond ASCII are written as %XX."
    )


def _working_directory() -> str:
    with suppress(OSError):
        return str(Path.cwd())
    return "a directory that was deleted"


def _describe(error: Exception) -> str:
    """Return a description of an error without the address, which the text of some errors contains."""
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return f"{type(error).__name__} {getattr(getattr(error, 'reason', error), 'strerror', None) or ''}".rstrip()
