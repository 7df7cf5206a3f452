"""Alerts to a real server on this machine."""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.records import Alert
from esdmon.sinks import WebhookSink
from tests.rules import ALWAYS

SECRET = "services/T00/B00/hush"  # noqa: S105 -- of this test
ALERT = Alert("low:fc1", "low", "error", "firing", "fc1", ("fc1", "слой"), 30, 10, "fc1: low: it is low — «x».")


class Server(ThreadingHTTPServer):
    """Answer with the given statuses, and with 200 from then on, while the gate is open; keep what was posted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.gate.wait(60)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == f"/{SECRET}"
        assert self.headers["Content-Type"] == "application/json"
        self.server.received.append(body)
        self.send_response(self.server.answers.pop(0) if self.server.answers else 200)
        with suppress(BrokenPipeError, ConnectionResetError):  # the sink may have given up
            self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        pass


def posting() -> list[threading.Thread]:
    """Return the threads that post alerts."""
    return [thread for thread in threading.enumerate() if thread.name == "esdmon-webhook"]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.gate.set()
        for thread in posting():  # one that is left would log its failure into the next test
            thread.join(10)
        server.shutdown()


def test_an_alert_is_posted_in_the_form_of_slack(server: Server) -> None:
    """There is a line of text, and the fields with a colour."""
    sink = WebhookSink(server.address)
    sink.alert(ALERT)
    sink.close()
    (body,) = server.received
    assert body["text"] == "esdmon, error, firing: fc1: low: it is low — «x»."
    (attachment,) = body["attachments"]
    assert attachment["color"] == "danger"
    fields = {field["title"]: field["value"] for field in attachment["fields"]}
    assert (fields["rule"], fields["layers"], fields["step"], fields["since step"]) == ("low", "fc1, слой", "30", "10")
    assert all(isinstance(field["value"], str) for field in attachment["fields"])


def test_its_thread_ends_with_it(server: Server) -> None:
    """There is no thread before the first alert."""
    before = posting()
    sink = WebhookSink(server.address)
    assert posting() == before
    sink.alert(ALERT)
    (thread,) = [thread for thread in posting() if thread not in before]
    sink.close()
    thread.join(5)
    assert not thread.is_alive()


def test_the_training_does_not_wait(server: Server) -> None:
    """Alerts are queued while the server answers nobody; closing waits for them."""
    server.gate.clear()
    sink = WebhookSink(server.address)
    for _ in range(3):
        sink.alert(ALERT)
    sink.flush()
    assert server.received == []
    server.gate.set()
    sink.close()
    assert len(server.received) == 3


@pytest.mark.parametrize(
    ("answers", "attempts", "is_lost"),
    [([500], 2, False), ([429, 503], 3, False), ([500, 500, 500], 3, True), ([404], 1, True)],
    ids=["once", "twice", "always", "refused"],
)
def test_what_fails_is_tried_again_and_logged_in_the_end(
    answers: list[int],
    attempts: int,
    is_lost: bool,  # noqa: FBT001
    server: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has the alert itself, and never the address."""
    server.answers = list(answers)
    sink = WebhookSink(server.address, retry_pause=0.01)
    sink.alert(ALERT)
    sink.close()
    assert len(server.received) == attempts
    assert ("posting an alert to 127.0.0.1 failed: HTTP " in caplog.text) == is_lost
    assert (ALERT.message in caplog.text) == is_lost
    assert SECRET not in caplog.text


def test_a_server_that_is_not_there_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Server() as gone:
        address = gone.address
    sink = WebhookSink(address, retry_pause=0.01)
    sink.alert(ALERT)
    sink.close()
    assert "posting an alert to 127.0.0.1 failed: URLError Connection refused. The alert was: fc1: low" in caplog.text
    assert SECRET not in caplog.text


def test_closing_waits_only_so_long(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A server that hangs does not keep the training from ending."""
    server.gate.clear()
    sink = WebhookSink(server.address, timeout=0.2)
    sink.alert(ALERT)
    sink.close()
    assert server.received == []
    assert "1 alert not sent to 127.0.0.1 within 0.2 s" in caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "",
        "hooks.slack.com/services/hush",
        "file:///hush",
        "ftp://x/hush",
        "https:///hush",
        "https://x:99999/hush",
        "https://x:one/hush",
        "https://[::1/hush",
        "https://x/hu sh",
        "https://x/hush\x00",
        "https://x/hush/ä",
    ],
)
def test_what_is_not_an_address_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(InputError, match="webhook takes an address") as raised:
        WebhookSink(address)
    assert "hush" not in str(raised.value)


def test_the_address_may_stand_in_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is then in no script and no checkpoint."""
    monkeypatch.setenv("HOOK", server.address)
    sink = WebhookSink("$HOOK")
    sink.alert(ALERT)
    sink.close()
    assert len(server.received) == 1
    monkeypatch.delenv("HOOK")
    with pytest.raises(InputError, match=r"webhook:\$HOOK: the environment has no variable HOOK"):
        WebhookSink("$HOOK")


def test_a_variable_that_was_filled_from_a_file_ends_with_its_line(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f"{server.address}\n")
    sink = WebhookSink("$HOOK")
    sink.alert(ALERT)
    sink.close()
    assert len(server.received) == 1


def test_an_alert_is_posted_though_the_working_directory_is_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a job whose scratch folder was removed."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    sink = WebhookSink(server.address, retry_pause=0.01)
    sink.alert(ALERT)
    sink.close()
    assert len(server.received) == 1


def test_a_watched_run_posts_its_alerts_and_says_its_address_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The address is neither in the log at any level, nor in a fault, nor in the error for a misspelt scheme."""
    caplog.set_level(logging.DEBUG)
    monitor = esdmon.watch(
        nn.Linear(64, 64), every=1, budget=None, sinks=[f"webhook:{server.address}"], alerts=[ALWAYS]
    )
    monitor.step()
    monitor.close()
    assert [body["text"] for body in server.received] == ["esdmon, warning, firing: always: it holds, at step 1."]
    assert monitor.errors == ()
    assert SECRET not in caplog.text
    with pytest.raises(InputError, match=r"unknown sink scheme 'webhok'.*Did you mean 'webhook'") as raised:
        esdmon.watch(nn.Linear(64, 64), sinks=f"webhok:{server.address}")
    assert SECRET not in str(raised.value)
