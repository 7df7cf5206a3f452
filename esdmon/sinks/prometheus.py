"""Export numbers to Prometheus: in a text file for node_exporter's collector, or at an HTTP endpoint.

The format is the text exposition format, version 0.0.4
(https://prometheus.io/docs/instrumenting/exposition_formats/). A tag `esdmon_alpha/fc1` is the gauge
`esdmon_alpha{layer="fc1"}`, and `esdmon_summary/overhead` is `esdmon_summary_overhead`; all have the label `run`.
"""

import os
import re
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import final

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError, check_content, local_path, unwritable
from esdmon.present.scalars import portable, scalars
from esdmon.records import Alert, Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_OWN = "# TYPE esdmon"
_HOST = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?P<host>[^/:]*|\[[0-9a-fA-F:]+\]):)?(?P<port>\d{1,5})")
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_:]")
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@explain_wrong_calls
@final
class PrometheusSink:
    """Export the last value of every number, the firing alerts, and the time of the last reading.

    Args:
        target: the path of a file that ends with `.prom`, which is replaced atomically at each report; or a host and a
            port, such as `0.0.0.0:9400`, where `/metrics` is served; or a port, such as `9400`, which is served on
            127.0.0.1 only.

    Raises:
        InputError: for any other target, a file that cannot be written, a file of another exporter (it is left
            unchanged), and an address that cannot be served.
    """

    def __init__(self, target: str) -> None:
        self._values: dict[str, float] = {}
        self._firing: dict[str, Alert] = {}
        self._step = 0
        self._read_at = 0.0
        self._run = ""
        self.text = ""
        """The text that Prometheus reads, as of the last report or alert."""
        self._path: Path | None = None
        self._server: ThreadingHTTPServer | None = None
        found = _ADDRESS.fullmatch(target)
        if found is None and not target.endswith(".prom"):
            raise InputError(
                f"unknown target 'prometheus:{target}'. Give a file, 'prometheus:runs/a/esdmon.prom', a port, "
                "'prometheus:9400', or a host and a port, 'prometheus:0.0.0.0:9400'."
            )
        if found is None:
            self._path = local_path(f"prometheus:{target}", target)
            check_content(f"prometheus:{self._path}", self._path, lambda first: first.startswith(_OWN))
        else:
            self._serve(found["host"] or _HOST, int(found["port"]))
        self._publish()

    @property
    def address(self) -> str:
        """Return the address that is served, or the path of the file."""
        if self._server is None:
            return str(self._path)
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/metrics"

    def start(self, run: str) -> None:
        """Use this id for the label `run`."""
        self._run = run

    def write(self, report: Report) -> None:
        """Export the numbers of a report; numbers of layers that were not read now keep their last value."""
        again = {portable(layer.name) for layer in report.new}  # values that are undefined now are removed
        kept = {name: value for name, value in self._values.items() if name.partition("/")[2] not in again}
        self._values = kept | scalars(report)
        self._step, self._read_at = report.step, time.time()
        self._publish()

    def alert(self, alert: Alert) -> None:
        """Export an alert while it fires: `esdmon_alert_firing{rule="…", severity="…", layer="…"} 1`."""
        self._firing.pop(alert.id, None)
        if alert.state == "firing":
            self._firing[alert.id] = alert
        self._publish()

    def where(self) -> str:
        """Return the path of the file; an empty text for an endpoint, which does not exist after the run."""
        return "" if self._path is None else str(self._path)

    def flush(self) -> None:
        """Do nothing: each report is exported at once."""

    def close(self) -> None:
        """End the endpoint; the file stays."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _format(self) -> str:
        families: dict[str, list[str]] = {}
        run = {"run": self._run} if self._run else {}
        for name, value in self._values.items():
            group, _, layer = name.partition("/")
            if group.endswith("_summary"):
                _add(families, f"{group}_{layer}", run, value)
            else:
                _add(families, group, {"layer": layer} | run, value)
        for alert in self._firing.values():
            labels = {"rule": alert.rule, "severity": alert.severity, "layer": alert.layer, "id": alert.id}
            _add(families, "esdmon_alert_firing", labels | run, 1.0)
        _add(families, "esdmon_step", run, float(self._step))
        _add(families, "esdmon_last_reading_timestamp_seconds", run, self._read_at)
        lines = [line for name, samples in families.items() for line in (f"# TYPE {name} gauge", *samples)]
        return "\n".join(lines) + "\n"

    def _publish(self) -> None:
        """Export the current values. A file is replaced atomically, so that readers never see half of it."""
        self.text = self._format()  # formatted here, since another thread serves the text
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(self.text, encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            raise unwritable(f"prometheus:{self._path}", error) from error

    def _serve(self, host: str, port: int) -> None:
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = sink.text.encode() if self.path.partition("?")[0] == "/metrics" else b""
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Write nothing to standard error."""

        try:
            self._server = ThreadingHTTPServer((host.strip("[]"), port), Handler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise InputError(
                f"prometheus:{host}:{port} cannot be served: {why}. Choose another port or host."
            ) from error
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="esdmon-prometheus", daemon=True).start()


def _add(families: dict[str, list[str]], name: str, labels: Mapping[str, str], value: float) -> None:
    """Add a sample to the family of a name."""
    family = _NOT_IN_A_NAME.sub("_", name)
    shown = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    families.setdefault(family, []).append(f"{family}{{{shown}}} {value!r}" if shown else f"{family} {value!r}")
