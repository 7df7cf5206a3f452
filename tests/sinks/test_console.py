"""The console sink: the table on standard output, or on a stream."""

import contextlib
import io

import pytest

from esdmon.records import Alert, Coverage, LayerReport, Report
from esdmon.sinks import ConsoleSink, Sink

REPORT = Report(7, (LayerReport("fc1", "ok", 7, N=4, M=2),), Coverage(8, 10))
ALERT = Alert("a", "rank_collapse", "error", "firing", "fc1", ("fc1",), step=7, since=5, message="fc1: rank 1 of 2.")


def test_a_report_is_printed_as_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    """With an empty line behind it, which sets readings apart."""
    ConsoleSink().write(REPORT)
    assert capsys.readouterr().out == f"{REPORT}\n\n"


def test_an_alert_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its severity and state stand before the message."""
    ConsoleSink().alert(ALERT)
    assert capsys.readouterr().out == "[error] firing: fc1: rank 1 of 2.\n"


def test_a_stream_of_the_users_own_is_written_to_and_left_open(capsys: pytest.CaptureFixture[str]) -> None:
    """Closing the sink does not close what it was given."""
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    sink.write(REPORT)
    sink.close()
    assert stream.getvalue() == f"{REPORT}\n\n"
    assert not stream.closed
    assert capsys.readouterr().out == ""


def test_standard_output_is_looked_up_at_each_write() -> None:
    """A notebook or a test that redirects it later gets the table all the same."""
    sink = ConsoleSink()
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        sink.alert(ALERT)
    assert "fc1: rank 1 of 2." in redirected.getvalue()


def test_flush_flushes_the_stream() -> None:
    """What is buffered can be seen by others afterwards."""
    raw = io.BytesIO()
    sink = ConsoleSink(io.TextIOWrapper(raw, encoding="utf-8"))
    sink.alert(ALERT)
    sink.flush()
    assert raw.getvalue().decode().strip() == "[error] firing: fc1: rank 1 of 2."


def test_it_is_a_sink() -> None:
    """It has all that the protocol asks for."""
    assert isinstance(ConsoleSink(), Sink)


def test_a_stream_of_few_characters_gets_what_it_can_show() -> None:
    """A terminal of ASCII shows question marks for × and ±; nothing is raised."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    sink = ConsoleSink(stream)
    sink.alert(Alert("a", "rule", "warning", "firing", "fc1", ("fc1",), 1, 1, "σ ± 1"))
    sink.close()
    assert raw.getvalue() == b"[warning] firing: ? ? 1\n"
