"""The JSONL sink: strict JSON, line by line, that survives kills and restarts."""

import gzip
import json
import math
import os
import shutil
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from esdmon.errors import InputError
from esdmon.records import SCHEMA, Alert, Coverage, LayerReport, Report
from esdmon.sinks import JsonlSink, Sink
from esdmon.sinks import lines as lines_module

LAYER = LayerReport("fc1", "ok", 5, N=4, M=2, measures={"alpha": 2.5, "xmin": math.nan}, nulls={"alpha": math.inf})
REPORT = Report(5, (LAYER, replace(LAYER, name="größe·层")), Coverage(8, 10), seconds=0.5)
ALERT = Alert(
    "rank_collapse:fc1",
    "rank_collapse",
    "error",
    "firing",
    "fc1",
    ("fc1",),
    step=5,
    since=3,
    message="fc1: rank 1 of 2.",
    evidence={"hard_rank": 1.0, "stable_rank": math.nan},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in a folder that is not there yet."""
    return tmp_path / "runs" / "a" / "esdmon.jsonl"


def refuse(constant: str) -> None:
    """Python's JSON reads NaN; JSON does not have it."""
    pytest.fail(f"{constant} is no JSON")


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the file, read by JSON's letter."""
    return [json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()]


def write(path: Path, *records: Report | Alert) -> None:
    """Open, write, close: one run of a script."""
    sink = JsonlSink(path)
    for record in records:
        if isinstance(record, Report):
            sink.write(record)
        else:
            sink.alert(record)
    sink.close()


def test_every_line_says_what_it_is(path: Path) -> None:
    """A line for each layer, one for the summary and one for an alert, with schema, kind and step in front."""
    write(path, REPORT, ALERT)
    assert [line["kind"] for line in lines(path)] == ["layer", "layer", "summary", "alert"]
    assert {(line["schema"], line["step"]) for line in lines(path)} == {(SCHEMA, 5)}
    assert {tuple(line)[:4] for line in lines(path)} == {("schema", "kind", "run", "step")}


def test_lines_hold_the_records(path: Path) -> None:
    """What a record has is what the line has."""
    write(path, REPORT, ALERT)
    records = [*REPORT.to_records(), REPORT.to_summary_record(), ALERT.to_record()]
    assert [{**line, **record} for line, record in zip(lines(path), records, strict=True)] == lines(path)


def test_what_is_undefined_is_null(path: Path) -> None:
    """Neither NaN nor infinity is written, in measures, nulls and evidence alike."""
    write(path, REPORT, ALERT)
    layer, *_, alert = lines(path)
    assert (layer["xmin"], layer["alpha_null"], alert["evidence"]["stable_rank"], alert["time"]) == (None,) * 4


def test_names_are_readable_in_the_file(path: Path) -> None:
    """UTF-8, without escapes."""
    write(path, REPORT)
    assert "größe·层" in path.read_text("utf-8")


def test_pandas_reads_the_mixed_kinds(path: Path) -> None:
    """One call, and a frame of layers is one comparison away."""
    write(path, REPORT, ALERT)
    frame = pd.read_json(path, lines=True)
    layers = frame[frame["kind"] == "layer"]
    assert list(frame["kind"]) == ["layer", "layer", "summary", "alert"]
    assert list(layers["name"]) == ["fc1", "größe·层"]
    assert list(layers["alpha"]) == [2.5, 2.5]
    assert layers["xmin"].isna().all()


def test_what_is_written_is_seen_at_once(path: Path) -> None:
    """Another process can read while the run goes on."""
    sink = JsonlSink(path)
    sink.alert(ALERT)
    assert len(lines(path)) == 1
    sink.close()


def test_a_second_run_appends(path: Path) -> None:
    """What an earlier run has written stays as it was."""
    write(path, REPORT)
    before = lines(path)
    write(path, ALERT)
    assert lines(path)[:-1] == before
    assert lines(path)[-1]["kind"] == "alert"


def test_a_line_that_was_cut_by_a_kill_is_removed(path: Path) -> None:
    """Whole lines stay, the cut one goes, and the next begins at the start of a line."""
    write(path, REPORT)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"schema": 1, "kind": "lay')
    write(path, ALERT)
    assert path.read_bytes().startswith(whole)
    assert [line["kind"] for line in lines(path)] == ["layer", "layer", "summary", "alert"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param('{"schema": 1', id="one-cut-line"),
        pytest.param('{"schema": 1, "kind": "layer", "run": "a1b2c3d4", "name": "größ', id="a-longer-one"),
    ],
)
def test_a_file_without_a_whole_line_is_begun_anew(path: Path, content: str) -> None:
    """A kill during the very first write leaves nothing to keep."""
    path.parent.mkdir(parents=True)
    path.write_text(content, "utf-8")
    write(path, ALERT)
    assert [line["kind"] for line in lines(path)] == ["alert"]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        pytest.param({"fc1", "fc2"}, TypeError, "not JSON serializable", id="set"),
        pytest.param([1.0, math.nan], ValueError, "not JSON compliant", id="nan-in-a-list"),
    ],
)
def test_evidence_that_is_no_json_leaves_no_half_line(
    path: Path, value: Any, error: type[Exception], message: str
) -> None:
    """A rule's evidence may be anything; the file stays whole and the sink usable."""
    sink = JsonlSink(path)
    with pytest.raises(error, match=message):
        sink.alert(replace(ALERT, evidence={"layers": value}))
    sink.alert(ALERT)
    sink.close()
    assert len(lines(path)) == 1


@pytest.mark.parametrize(
    "below",
    [
        pytest.param("file/esdmon.jsonl", id="its-folder-is-a-file"),
        pytest.param("file/a/esdmon.jsonl", id="below-a-file"),
        pytest.param(".", id="is-a-folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path, below: str) -> None:
    """Before training, in one sentence that names the path."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^jsonl:.+ cannot be written: .+\. Choose another place\.$"):
        JsonlSink(tmp_path / below)


def test_closing_twice_is_harmless(path: Path) -> None:
    """As with any file."""
    sink = JsonlSink(path)
    sink.close()
    sink.close()
    assert path.read_bytes() == b""


def test_it_is_a_sink(path: Path) -> None:
    """It has all that the protocol asks for."""
    sink = JsonlSink(path)
    assert isinstance(sink, Sink)
    sink.close()


LINE = b'{"schema": 1, "kind": "summary", "run": "a", "step": 1}'


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
    """Whatever stands before it, and whoever has edited the file since."""
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
    with pytest.raises(InputError, match=r"holds something else than JSON lines of esdmon\. Choose another path"):
        JsonlSink(path)
    assert path.read_bytes() == content
    assert path.stat().st_mtime == 1


def test_a_file_is_checked_where_a_link_leads(tmp_path: Path) -> None:
    """To one of ours it is used, and stays a link when lines are cut out; to another it is refused."""
    path, link = tmp_path / "run.jsonl", tmp_path / "link"
    link.symlink_to(path)
    for step, run in ((1, "aa"), (2, "bb")):
        with closing(started(link, run)) as sink:
            sink.alert(replace(ALERT, step=step))
    with closing(started(link, "aa")) as sink:
        sink.rewind(0)
    assert link.is_symlink()
    assert [(line["run"], line["step"]) for line in lines(path)] == [("bb", 2)]
    path.write_text("notes")
    with pytest.raises(InputError, match="holds something else"):
        JsonlSink(link)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such pipes on this system")
def test_a_pipe_never_holds_the_training_up(tmp_path: Path) -> None:
    """One that nobody reads is refused; one that is read has the lines; one that is full is a fault."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="cannot be written"):
        JsonlSink(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with closing(JsonlSink(path)) as sink:
        sink.alert(ALERT)
        assert json.loads(os.read(reader, 1 << 16))["kind"] == "alert"
        big = replace(ALERT, message="x" * (1 << 20))
        with pytest.raises(BlockingIOError, match="a pipe that is full"):
            sink.alert(big)
    os.close(reader)


def test_the_working_directory_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """A path is that of the directory in which it was given."""
    monkeypatch.chdir(tmp_path)
    sink = JsonlSink("runs/e.jsonl")
    sink.alert(ALERT)
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    sink.alert(ALERT)
    sink.rewind(0)
    sink.alert(ALERT)
    sink.close()
    assert len(lines(tmp_path / "runs/e.jsonl")) == 1
    assert list(tmp_path.glob("job/*")) == []
    assert caplog.text == ""


def started(path: Path, run: str) -> JsonlSink:
    """A sink of the run with an id."""
    sink = JsonlSink(path)
    sink.start(run)
    return sink


def written(path: Path) -> list[tuple[str, int]]:
    """The run and the step of each whole line."""
    found = []
    for line in path.read_text().splitlines():
        with suppress(ValueError, TypeError):
            found.append((json.loads(line)["run"], json.loads(line)["step"]))
    return found


def append(path: Path, run: str, *steps: int) -> None:
    with closing(started(path, run)) as sink:
        for step in steps:
            sink.alert(replace(ALERT, step=step))


@pytest.mark.parametrize(("step", "left"), [(0, []), (3, [1, 3]), (4, [1, 3]), (9, [1, 3, 5])])
def test_a_run_that_goes_on_from_a_step_drops_what_came_after(path: Path, step: int, left: list[int]) -> None:
    """And is written to afterwards."""
    append(path, "aa", 1, 3, 5)
    sink = started(path, "aa")
    sink.rewind(step)
    assert written(path) == [("aa", k) for k in left]
    sink.alert(replace(ALERT, step=7))
    sink.close()
    assert written(path) == [("aa", k) for k in (*left, 7)]


def test_lines_of_another_run_are_never_cut(path: Path) -> None:
    """Before, between and behind those of this one."""
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


def test_a_torn_line_in_the_middle_is_skipped_when_lines_are_cut(path: Path) -> None:
    """As a machine that went down leaves it."""
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
    """Where nobody has said which run it is."""
    append(path, "aa", 1, 3, 5)
    sink = JsonlSink(path)
    sink.rewind(3)
    sink.alert(replace(ALERT, step=5))
    sink.close()
    assert written(path) == [("aa", 1), ("aa", 3), ("aa", 5)]


def test_lines_of_an_older_version_have_no_run(path: Path) -> None:
    """They are cut where nobody has said which run it is, and else are another's."""
    path.parent.mkdir(parents=True)
    old = [{"schema": 1, "kind": "summary", "seconds": 0.1, "step": step} for step in (1, 3, 5)]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in old))
    for run, left in (("aa", [1, 3, 5]), (None, [1, 3])):
        sink = started(path, run) if run else JsonlSink(path)
        sink.rewind(4)
        sink.close()
        assert [line["step"] for line in lines(path)] == left


def test_of_a_large_file_only_the_end_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some blocks of a megabyte; here they have a thousand bytes."""
    monkeypatch.setattr("esdmon.sinks.lines._BLOCK", 1000)
    append(path, "aa", *range(1, 301))
    read: list[bytes] = []
    real = lines_module._read

    def spy(line: bytes) -> lines_module.Line | None:
        read.append(line)
        return real(line)

    monkeypatch.setattr(lines_module, "_read", spy)
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


def test_after_an_outage_it_is_written_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a folder that is gone for a while."""
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
    assert caplog.text.count("was deleted: what it held is lost") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="files have no limit there")
def test_a_disk_that_is_full_for_a_while_leaves_no_torn_line(path: Path) -> None:
    """A line of which the first half could be written is taken back."""
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
    assert [(line["run"], line["step"]) for line in lines(path)] == [("aa", 1), ("aa", 4)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device on this system")
def test_a_device_that_is_full_is_a_fault_each_time() -> None:
    sink = JsonlSink("/dev/full")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            sink.alert(ALERT)
    sink.close()


def test_a_file_that_was_put_in_its_place_is_written_to_if_it_is_ours(path: Path) -> None:
    """As an editor, or a synchronisation, does; what is no longer ours is left alone."""
    sink = started(path, "aa")
    sink.alert(ALERT)
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    sink.alert(replace(ALERT, step=7))
    assert written(path) == [("aa", 5), ("aa", 7)]
    copy.write_text("notes")
    copy.replace(path)
    with pytest.raises(InputError, match="holds something else"):
        sink.alert(ALERT)
    assert path.read_text() == "notes"


def test_a_device_can_be_written() -> None:
    """What is no regular file is not searched for a broken line."""
    JsonlSink("/dev/null").close()
