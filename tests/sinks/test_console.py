"""The console sink: the table on standard output, or on a stream."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

import pytest

from esdmon.present.colours import PHASE_COLOURS, coloured
from esdmon.records import Alert, Coverage, LayerReport, Report, Skipped
from esdmon.sinks import ConsoleSink, Sink
from esdmon.spectrum import Phase

REPORT = Report(7, (LayerReport("fc1", "ok", 7, N=4, M=2),), Coverage(8, 10))
ALERT = Alert("a", "rank_collapse", "error", "firing", "fc1", ("fc1",), step=7, since=5, message="fc1: rank 1 of 2.")


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of CI: these tests run in a CI job, too."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def many(step: int, spiked: int) -> Report:
    """Return a report of sixty layers, the first of which are in another phase."""
    layers = [
        LayerReport(f"h.{k}", "ok", step, N=64, M=64, phase=Phase.BULK_SPIKES if k < spiked else Phase.RANDOM_LIKE)
        for k in range(60)
    ]
    return Report(step, tuple(layers), Coverage(8, 10))


def test_phases_have_colours_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours do not shift the columns, and `NO_COLOR` disables them."""
    layer = LayerReport("fc1", "ok", 7, N=64, M=64, phase=Phase.BULK_SPIKES)
    report = Report(7, (layer,), Coverage(8, 10))
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        ConsoleSink(stream).write(report)
    assert "\x1b[34mbulk+spikes\x1b[0m" in terminal.getvalue()
    assert terminal.getvalue().replace("\x1b[34m", "").replace("\x1b[0m", "") == file.getvalue() == f"{report}\n\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    ConsoleSink(plain).write(report)
    assert plain.getvalue() == file.getvalue()


def test_of_many_layers_those_are_shown_that_have_changed() -> None:
    """First forty rows are printed, then the two that have spikes now, then a line."""
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    shown = []
    for step, spiked in ((1, 0), (2, 2), (3, 2)):
        stream.truncate(stream.seek(0))
        sink.write(many(step, spiked))
        shown.append([line.split()[0] for line in stream.getvalue().splitlines() if line.startswith("h.")])
        assert f"esdmon, step {step}: {60 - spiked} random-like" in stream.getvalue()
    assert [len(lines) for lines in shown] == [40, 2, 0]
    assert shown[1] == ["h.0", "h.1"]


def test_in_the_log_of_a_ci_job_a_reading_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty layers are counted by phase."""
    monkeypatch.setenv("CI", "true")
    stream = io.StringIO()
    ConsoleSink(stream).write(many(5, 1))
    assert stream.getvalue() == "esdmon, step 5: 59 random-like, 1 bulk+spikes; 60 of 60 read now\n"


def test_a_report_is_printed_as_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty line separates readings."""
    ConsoleSink().write(REPORT)
    assert capsys.readouterr().out == f"{REPORT}\n\n"


def test_what_is_not_watched_is_named_once() -> None:
    """And again where it has changed: in a long run the same lines below each table would hide what is new."""
    stream = io.StringIO()
    sink = ConsoleSink(stream)
    first, other = Skipped("fc1.bias", 4, "vectors"), Skipped("fc2.bias", 4, "vectors")
    shown = []
    for skipped in ((first,), (first,), (first, other)):
        stream.truncate(stream.seek(0))
        sink.write(replace(REPORT, coverage=Coverage(8, 16, skipped)))
        assert "step 7, watching 50.0% of 16 parameters" in stream.getvalue()
        shown.append([line for line in stream.getvalue().splitlines() if "not watched" in line])
    assert shown == [["  not watched: fc1.bias (vectors)"], [], ["  not watched: fc1.bias, fc2.bias (vectors)"]]


def test_an_alert_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Its severity and state stand before the message."""
    ConsoleSink().alert(ALERT)
    ConsoleSink().alert(replace(ALERT, severity="info"))
    assert capsys.readouterr().out == "[error] firing: fc1: rank 1 of 2.\n[notice] firing: fc1: rank 1 of 2.\n"


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
    """A notebook or a test that redirects it later gets the output."""
    sink = ConsoleSink()
    with contextlib.redirect_stdout(io.StringIO()) as redirected:
        sink.alert(ALERT)
    assert "fc1: rank 1 of 2." in redirected.getvalue()


class Tee:
    """A replacement of standard output that has only `write`."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Logger(Tee):
    """A replacement of standard output whose other attributes are None."""

    encoding = None
    closed = None
    isatty = None

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Tee, Logger])
def test_standard_output_may_be_anything_that_has_write(kind: type[Tee], monkeypatch: pytest.MonkeyPatch) -> None:
    """A CI system checks whether it is a terminal."""
    for value in ("", "true"):
        tee = kind()
        with monkeypatch.context() as patched:
            patched.setattr("sys.stdout", tee)
            patched.setenv("CI", value)
            sink = ConsoleSink()
            sink.write(REPORT)
            sink.alert(ALERT)
            sink.close()
        assert ("spikes" in tee.text) != bool(value)  # of the header of the table
        assert "[error] firing: fc1: rank 1 of 2." in tee.text


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def detached() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream.detach()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed, detached], ids=["none", "closed", "detached"])
def test_where_nobody_would_see_it_nothing_is_printed(
    make: Callable[[], TextIO | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs without a console have no standard output; a notebook may have closed its own."""
    monkeypatch.setattr("sys.stdout", make())
    sink = ConsoleSink()
    sink.write(REPORT)
    sink.alert(ALERT)
    sink.close()


def test_an_encoding_that_python_does_not_know_is_left_to_the_stream() -> None:
    class Odd(io.StringIO):
        encoding = "x-of-a-terminal"

    stream = Odd()
    ConsoleSink(stream).alert(ALERT)
    assert stream.getvalue() == "[error] firing: fc1: rank 1 of 2.\n"


def test_the_demo_has_the_same_colours() -> None:
    """Rich and the console use the same escape sequence for each phase."""
    from rich.console import Console

    for phase, colour in PHASE_COLOURS.items():
        console = Console(force_terminal=True, color_system="standard", file=io.StringIO(), _environ={})
        console.print(f"[{colour}]{phase.value}[/]", end="", highlight=False)
        assert isinstance(console.file, io.StringIO)
        assert console.file.getvalue() == coloured(phase, phase.value)
    assert set(PHASE_COLOURS) == set(Phase)


def test_flush_flushes_the_stream() -> None:
    """Buffered output is visible afterwards."""
    raw = io.BytesIO()
    sink = ConsoleSink(io.TextIOWrapper(raw, encoding="utf-8"))
    sink.alert(ALERT)
    sink.flush()
    assert raw.getvalue().decode().strip() == "[error] firing: fc1: rank 1 of 2."


def test_it_is_a_sink() -> None:
    """It has all methods of the protocol."""
    assert isinstance(ConsoleSink(), Sink)


def test_a_stream_of_few_characters_gets_what_it_can_show() -> None:
    """A terminal of ASCII shows words for σ and ±; nothing is raised."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    sink = ConsoleSink(stream)
    sink.alert(Alert("a", "rule", "warning", "firing", "fc1", ("fc1",), 1, 1, "σ ± 1"))
    sink.close()
    assert raw.getvalue() == b"[warning] firing: sigma +-1\n"
