"""Sinks of a callback: the host's loggers, or a file in its folder."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from esdmon.sinks import MemorySink, Sink
from esdmon.trainers.options import CallbackOptions
from esdmon.trainers.sinks import HostSinks, open_sinks, own_jsonl


def options(*sinks: str | Sink, strict: bool = False) -> CallbackOptions:
    return CallbackOptions(every=1, sinks=list(sinks), options={"strict": strict})


def host(folder: Path, *loggers: tuple[str, Callable[[], str | Sink]]) -> HostSinks:
    return HostSinks(loggers=lambda: loggers, folder=lambda: folder, resumed=None)


def broken() -> Sink:
    raise RuntimeError("no")


def test_auto_is_the_loggers_of_the_host(tmp_path: Path) -> None:
    """Beside the sinks that are given; specs of the user's are opened later, with the monitor."""
    own, given = MemorySink(), MemorySink()
    opened = open_sinks(options("auto", given, "jsonl:a"), host(tmp_path, ("a logger", lambda: own)))
    assert opened == [("a logger", own), ("MemorySink", given), ("jsonl:a", "jsonl:a")]


def test_without_loggers_it_is_a_file_of_the_run(tmp_path: Path) -> None:
    """In the folder of the host."""
    ((name, sink),) = open_sinks(options("auto"), host(tmp_path))
    assert isinstance(sink, Sink)
    sink.close()
    assert name == f"jsonl:{tmp_path / 'esdmon-1' / 'esdmon.jsonl'}"


def test_a_run_takes_the_next_number_and_a_resumed_one_its_own_file(tmp_path: Path) -> None:
    """By the last line of each file. The newest where the run is unknown, and a new one where none is its own."""
    for n, run in enumerate(("a1", "b2"), 1):
        assert own_jsonl(tmp_path, resumed=None) == jsonl(tmp_path, n)
        file = tmp_path / f"esdmon-{n}" / "esdmon.jsonl"
        file.parent.mkdir()
        file.write_text(f'{{"schema":1,"kind":"summary","run":"{run}","step":5}}\n')
        assert own_jsonl(tmp_path, resumed="") == jsonl(tmp_path, n)
    assert [own_jsonl(tmp_path, resumed=run) for run in ("a1", "b2", "c3")] == [jsonl(tmp_path, n) for n in (1, 2, 3)]


def jsonl(folder: Path, n: int) -> str:
    return f"jsonl:{folder / f'esdmon-{n}' / 'esdmon.jsonl'}"


def test_a_logger_that_cannot_be_opened_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line for it; the others are used. With `strict=True` it raises."""
    loggers = host(tmp_path, ("bad", broken), ("good", MemorySink))
    with caplog.at_level(logging.WARNING, "esdmon"):
        assert [name for name, _ in open_sinks(options("auto"), loggers)] == ["good"]
    assert caplog.messages == [
        "esdmon: cannot open bad: RuntimeError: no. No readings are written to it; training continues."
    ]
    with pytest.raises(RuntimeError, match="no"):
        open_sinks(options("auto", strict=True), loggers)
