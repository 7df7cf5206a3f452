"""The memory sink keeps all that was written, in order."""

from esdmon.records import Alert, Coverage, Report
from esdmon.sinks import MemorySink, Sink


def test_what_is_written_is_kept_in_order() -> None:
    """Reports and alerts are the same objects, also after the sink was closed."""
    sink = MemorySink()
    reports = [Report(step, (), Coverage(0, 0)) for step in (1, 2)]
    alert = Alert("a", "rank_collapse", "error", "firing", "fc1", ("fc1",), step=2, since=1, message="collapsed")
    for report in reports:
        sink.write(report)
    sink.alert(alert)
    sink.flush()
    sink.close()
    assert (sink.reports, sink.alerts) == (reports, [alert])


def test_two_sinks_share_nothing() -> None:
    """Each keeps a list of its own."""
    first, second = MemorySink(), MemorySink()
    first.write(Report(1, (), Coverage(0, 0)))
    assert second.reports == []


def test_it_is_a_sink() -> None:
    """It has all methods of the protocol."""
    assert isinstance(MemorySink(), Sink)
