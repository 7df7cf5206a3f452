"""A JSONL on disks that fill up, pipes, and files that are moved or deleted."""

import json
import os
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esdmon.errors import InputError
from esdmon.sinks import JsonlSink
from tests.jsonl import records_in
from tests.sinks.jsonl_files import ALERT, append, started, written


def test_after_an_outage_it_is_written_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder is missing for a while."""
    sink = started(path, "aa")
    sink.alert(ALERT)
    shutil.rmtree(path.parent)
    path.parent.write_text("in the way")
    for _ in range(3):
        with pytest.raises(OSError, match="File exists"):
            sink.alert(ALERT)
    path.parent.unlink()
    sink.alert(replace(ALERT, step=7))
    sink.close()
    assert written(path) == [("aa", 7)]
    assert caplog.text.count("was deleted, and its content is lost") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_disk_that_is_full_for_a_while_leaves_no_torn_line(path: Path) -> None:
    """Half a line that could be written is removed again."""
    import resource

    append(path, "aa", 1)
    size = path.stat().st_size
    sink = started(path, "aa")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
        for step in (2, 3):
            with pytest.raises(OSError, match="File too large"):
                sink.alert(replace(ALERT, step=step))
            assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.alert(replace(ALERT, step=4))
    sink.close()
    assert [(line["run"], line["step"]) for line in records_in(path)] == [("aa", 1), ("aa", 4)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device on this system")
def test_a_device_that_is_full_is_a_fault_each_time() -> None:
    sink = JsonlSink("/dev/full")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            sink.alert(ALERT)
    sink.close()


def test_a_file_that_was_put_in_its_place_is_written_to_if_it_is_ours(path: Path) -> None:
    """An editor or a synchronisation replaces files; one that is no longer ours is left unchanged."""
    sink = started(path, "aa")
    sink.alert(ALERT)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    sink.alert(replace(ALERT, step=7))
    assert written(path) == [("aa", 5), ("aa", 7)]
    copy.write_text("notes")
    copy.replace(path)
    with pytest.raises(InputError, match="contains something other"):
        sink.alert(ALERT)
    assert path.read_text() == "notes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes on this system")
def test_a_pipe_never_holds_the_training_up(tmp_path: Path) -> None:
    """A pipe without a reader is refused, one with a reader gets the lines, and a full one raises."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="cannot be written"):
        JsonlSink(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with closing(JsonlSink(path)) as sink:
        sink.alert(ALERT)
        assert json.loads(os.read(reader, 1 << 16))["kind"] == "alert"
        big = replace(ALERT, message="x" * (1 << 20))
        with pytest.raises(BlockingIOError, match="the pipe is full"):
            sink.alert(big)
    os.close(reader)


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A relative path refers to the directory in which the sink was opened."""
    monkeypatch.chdir(tmp_path)
    sink = JsonlSink("runs/e.jsonl")
    sink.alert(ALERT)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    sink.alert(ALERT)
    sink.rewind(0)
    sink.alert(ALERT)
    sink.close()
    assert len(records_in(tmp_path / "runs/e.jsonl")) == 1
    assert list(tmp_path.glob("job/*")) == []
    assert caplog.text == ""
