"""Opening a JSONL: torn lines are removed, and files of others are refused."""

import gzip
import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import JsonlSink, MemorySink
from tests.jsonl import records_in
from tests.sinks.jsonl_files import ALERT, LINE, REPORT, started, write


def test_a_line_that_was_cut_by_a_kill_is_removed(path: Path) -> None:
    """Whole lines are kept, the torn one is removed, and the next begins at the start of a line."""
    write(path, REPORT)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "kind": "lay')
    write(path, ALERT)
    assert path.read_bytes().startswith(whole)
    assert [line["kind"] for line in records_in(path)] == ["layer", "layer", "summary", "alert"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param('{"schema": 1', id="one-cut-line"),
        pytest.param('{"schema": 1, "kind": "layer", "run": "a1b2c3d4", "name": "größ', id="a-longer-one"),
    ],
)
def test_a_file_without_a_whole_line_is_emptied(path: Path, content: str) -> None:
    """A kill during the very first write leaves nothing to keep."""
    path.parent.mkdir(parents=True)
    path.write_text(content, "utf-8")
    write(path, ALERT)
    assert [line["kind"] for line in records_in(path)] == ["alert"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        pytest.param(LINE, LINE + b"\n", id="one-whole-line"),
        pytest.param(LINE + b"\n" + LINE, LINE + b"\n" + LINE + b"\n", id="two-whole-lines"),
        pytest.param(LINE + b"\r\n" + LINE[:-5], LINE + b"\r\n", id="of-windows"),
        pytest.param(b"\xef\xbb\xbf" + LINE + b"\n", b"\xef\xbb\xbf" + LINE + b"\n", id="byte-order-mark"),
        pytest.param(LINE + b"\n" + LINE[:40] + b"\0\0\0", LINE + b"\n", id="power-cut-in-a-line"),
        pytest.param(LINE + b"\n\0\0\0", LINE + b"\n", id="power-cut"),
        pytest.param(LINE + b"\nmy notes", LINE + b"\nmy notes\n", id="notes-behind-it"),
        pytest.param(b'{"schema":1,"kind":"alert","step":2}\n', b'{"schema":1,"kind":"alert","step":2}\n', id="by-jq"),
        pytest.param(
            LINE[:-1] + b', "waiting": "' + b"x" * (3 << 20) + b'"}\n' + LINE[:30],
            LINE[:-1] + b', "waiting": "' + b"x" * (3 << 20) + b'"}\n',
            id="a-very-long-line",
        ),
        pytest.param(
            LINE + b"\n" + LINE[:-1] + b', "waiting": "' + b"x" * (3 << 20), LINE + b"\n", id="a-very-long-torn-line"
        ),
    ],
)
def test_of_a_file_of_ours_only_a_line_that_was_never_finished_is_cut(
    tmp_path: Path, content: bytes, kept: bytes
) -> None:
    """This holds whatever precedes it, and whoever has edited the file since."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    write(path, ALERT)
    written = path.read_bytes()
    assert written.startswith(kept)
    assert json.loads(written[len(kept) :])["kind"] == "alert"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"My notes\nunfinished", id="notes"),
        pytest.param(b"one line of the user's, without a newline at its end", id="one-line"),
        pytest.param(b"one line of the user's\n", id="one-whole-line"),
        pytest.param(b'{"lr": 0.1}', id="config"),
        pytest.param(b'{"lr": 0.1}\n', id="config-with-newline"),
        pytest.param(b'{"lr": 0.1', id="config-cut"),
        pytest.param(b'{"schema": 1, "kind": "Deployment"}\n', id="schema-and-kind-of-others"),
        pytest.param(b'{"schema": "http://json-schema.org", "kind": "summary"}', id="schema-of-others"),
        pytest.param(b'{"a": 1}\n{"a": 2}\n', id="json-lines-of-others"),
        pytest.param(b'{"a": 1}\n' + LINE + b"\n", id="ours-behind-others"),
        pytest.param(b"\n" + LINE + b"\n", id="an-empty-line"),
        pytest.param(b"[1, 2]", id="list"),
        pytest.param(b"{", id="brace"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(b"x" * (3 << 20), id="no-newline-in-megabytes"),
        pytest.param(gzip.compress(LINE + b"\n"), id="gzip"),
        pytest.param(LINE.decode().encode("utf-16") + b"\n\0", id="utf-16"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"schema": ' + b"[" * 100_000, id="deeper"),
    ],
)
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A slip in the path must not cost the user a file, or a byte of it."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match=r"contains something other than JSON lines of esdmon\. Choose another path"):
        JsonlSink(path)
    assert path.read_bytes() == content
    assert path.stat().st_mtime == 1


def test_a_file_is_checked_where_a_link_leads(tmp_path: Path) -> None:
    """A link to a file of ours is used, and stays a link when lines are removed; to another it is refused."""
    path, link = tmp_path / "run.jsonl", tmp_path / "link"
    link.symlink_to(path)
    for step, run in ((1, "aa"), (2, "bb")):
        with closing(started(link, run)) as sink:
            sink.alert(replace(ALERT, step=step))
    with closing(started(link, "aa")) as sink:
        sink.rewind(0)
    assert link.is_symlink()
    assert [(line["run"], line["step"]) for line in records_in(path)] == [("bb", 2)]
    path.write_text("notes")
    with pytest.raises(InputError, match="contains something other"):
        JsonlSink(link)


@pytest.mark.parametrize(
    "below",
    [
        pytest.param("file/esdmon.jsonl", id="its-folder-is-a-file"),
        pytest.param("file/a/esdmon.jsonl", id="below-a-file"),
        pytest.param(".", id="is-a-folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path, below: str) -> None:
    """The error is raised before training, in one sentence that names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^jsonl:.+ cannot be written: .+\. Choose another place\.$"):
        JsonlSink(tmp_path / below)


def test_a_device_can_be_written() -> None:
    """Only a regular file is searched for a torn line."""
    JsonlSink("/dev/null").close()


@pytest.mark.parametrize("again", ["jsonl:a.jsonl", "jsonl:./a.jsonl"])
def test_a_file_that_is_given_twice_is_written_once(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two sinks of one run would write through each other's lines; a warning says that one is left out."""
    monkeypatch.chdir(tmp_path)
    sink = MemorySink()
    with esdmon.watch(nn.Linear(32, 32), every=1, sinks=["jsonl:a.jsonl", sink, again, sink]) as monitor:
        monitor.step()
    assert [line["kind"] for line in records_in(tmp_path / "a.jsonl")] == ["layer", "summary"]
    assert len(sink.reports) == 1
    twice = [record.getMessage() for record in caplog.records if "twice" in record.getMessage()]
    assert twice == [
        f"esdmon: sinks= holds {name} twice. Each reading is written to it once; leave one out."
        for name in (again, "MemorySink")
    ]
