"""Rewinding a JSONL: the lines of one run after a step are removed, and no others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from esdmon.sinks import JsonlSink
from esdmon.sinks import lines as lines_module
from tests.jsonl import records_in
from tests.sinks.jsonl_files import ALERT, append, started, written


@pytest.mark.parametrize(("step", "left"), [(0, []), (3, [1, 3]), (4, [1, 3]), (9, [1, 3, 5])])
def test_a_run_that_goes_on_from_a_step_drops_what_came_after(path: Path, step: int, left: list[int]) -> None:
    """The file can be written to afterwards."""
    append(path, "aa", 1, 3, 5)
    sink = started(path, "aa")
    sink.rewind(step)
    assert written(path) == [("aa", k) for k in left]
    sink.alert(replace(ALERT, step=7))
    sink.close()
    assert written(path) == [("aa", k) for k in (*left, 7)]


def test_lines_of_another_run_are_never_cut(path: Path) -> None:
    """They may be before, between and behind those of this run."""
    append(path, "aa", 1, 5, 9)
    append(path, "bb", 1, 5, 9)
    append(path, "aa", 10)
    append(path, "cc", 11)
    sink = started(path, "bb")
    sink.rewind(4)
    expected = [("aa", 1), ("aa", 5), ("aa", 9), ("bb", 1), ("aa", 10), ("cc", 11)]
    assert written(path) == expected
    sink.alert(replace(ALERT, step=6))
    assert written(path) == [*expected, ("bb", 6)]
    sink.start("dd")  # a run that has no lines yet
    sink.rewind(0)
    sink.close()
    assert written(path) == [*expected, ("bb", 6)]


def test_a_run_that_is_resumed_in_the_file_of_another_is_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When its state is loaded, with the remedy, and not again; none where the file ends with the run's own lines."""
    append(path, "aa", 1, 5)
    append(path, "bb", 1, 5)
    caplog.clear()
    for run in ("bb", "aa"):
        sink = started(path, run)
        sink.rewind(4)
        sink.alert(replace(ALERT, step=6))
        sink.close()
    (message,) = caplog.messages
    assert message.startswith(
        f"esdmon: {path} already holds another run. The run that is resumed, with the id aa in its"
    )
    assert "give sinks= the file that it wrote to before" in message


def test_a_torn_line_in_the_middle_is_skipped_when_lines_are_cut(path: Path) -> None:
    """A crash of the machine leaves such lines."""
    append(path, "aa", 1, 3, 5, 7)
    all_of_it = path.read_text().splitlines(keepends=True)
    all_of_it[1] = all_of_it[1][:80] + "\n"
    path.write_text("".join([*all_of_it[:3], "no JSON\n", "[1]\n", *all_of_it[3:]]))
    sink = started(path, "aa")
    sink.rewind(4)
    sink.alert(replace(ALERT, step=5))
    sink.close()
    assert written(path) == [("aa", 1), ("aa", 5)]
    assert "no JSON\n[1]\n" in path.read_text()


def test_a_sink_by_itself_goes_on_with_the_run_that_the_file_ends_with(path: Path) -> None:
    """`start` was not called."""
    append(path, "aa", 1, 3, 5)
    sink = JsonlSink(path)
    sink.rewind(3)
    sink.alert(replace(ALERT, step=5))
    sink.close()
    assert written(path) == [("aa", 1), ("aa", 3), ("aa", 5)]


def test_lines_of_an_older_version_have_no_run(path: Path) -> None:
    """They are removed if `start` was not called, and else belong to another run."""
    path.parent.mkdir(parents=True)
    old = [{"schema": 1, "kind": "summary", "seconds": 0.1, "step": step} for step in (1, 3, 5)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    for run, left in (("aa", [1, 3, 5]), (None, [1, 3])):
        sink = started(path, run) if run else JsonlSink(path)
        sink.rewind(4)
        sink.close()
        assert [line["step"] for line in records_in(path)] == left


def test_of_a_large_file_only_the_end_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are read from the end; here they have a thousand bytes."""
    monkeypatch.setattr("esdmon.sinks.lines.BLOCK_SIZE", 1000)
    append(path, "aa", *range(1, 301))
    read: list[bytes] = []
    real = lines_module.stamp_of

    def spy(line: bytes) -> lines_module.Stamp | None:
        read.append(line)
        return real(line)

    monkeypatch.setattr(lines_module, "stamp_of", spy)
    sink = started(path, "aa")
    sink.rewind(290)
    assert written(path) == [("aa", step) for step in range(1, 291)]
    assert len(read) < 20
    sink.rewind(0)
    sink.close()
    assert path.read_bytes() == b""


def test_an_alert_that_was_written_before_an_earlier_reading_is_cut(path: Path) -> None:
    """A reading that was begun at step 8 may be finished after an alert of step 12."""
    append(path, "aa", 4, 12, 8)
    sink = started(path, "aa")
    sink.rewind(10)
    sink.close()
    assert written(path) == [("aa", 4), ("aa", 8)]
